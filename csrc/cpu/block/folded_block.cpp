// The operators of a residual block whose layers all have kernels: its result, and the gradient by its input.
//
// A few images at a time go through all layers, so that the next layer can find in the cache what the one before left,
// and intermediate gradients take memory for these images only. Results do not depend on the number of images, because
// those of the kernels do not.
#include <optional>
#include <tuple>
#include <vector>

#include "../common/rows.h"
#include "../convolution/operands.h"
#include "../local_relation/kernels.h"
#include "../operators.h"

namespace robust_lr::cpu {
namespace {

// Size of the results that the layers of a block have for the images that go through it together.
constexpr Index kBytesOfPart = 1 << 19;

// a / b, rounded up.
Index divide_up(Index a, Index b) { return (a + b - 1) / b; }

struct Shape {
  Index channels, height, width;
  bool operator==(const Shape&) const = default;
  Index pixels() const { return height * width; }
  Index size() const { return channels * pixels(); }
};

// Images [begin, end) of a batch.
struct Images {
  Index begin, end;
  Index count() const { return end - begin; }
};

// These images of a batch at `data`.
template <class T>
Pixels<T> part_of(T* data, const Shape& shape, Images images) {
  return {data + images.begin * shape.size(), images.count(), shape.height, shape.width, shape.channels};
}

// Where a layer keeps what its gradient needs, in bytes from the start of `kept`; the last layer's y is the result.
struct Places {
  Index y, q, k, stats;
};

template <class P>
struct BlockConvolution {
  using T = typename P::Element;
  using A = typename P::Sum;

  Shape from, to;
  Window window;
  bool relu;       // follows
  bool rectified;  // x is the result of a ReLU, whose gradient is taken together with the convolution's
  const T *packed, *transposed;
  const A* bias;  // or null

  void run(Pixels<const T> x, Pixels<T> y, const T* shortcut = nullptr) const {
    run_convolution<P>(window, x, packed, y, {bias, shortcut, relu});
  }

  // Adds `given`, the gradient that reaches x by another path, if it is not null.
  void pull_back(Pixels<const T> dy, Pixels<const T> x, const T* given, Pixels<T> dx) const {
    run_convolution_gradient<P>(window, dy, transposed, dx, {nullptr, given, false, rectified ? x.data : nullptr});
  }
};

// A convolution, or a local relation with the convolutions that make its queries and keys.
template <class P>
struct BlockLayer {
  Shape from, to;
  BlockConvolution<P> convolution;  // in a relation that of the queries, and at stride 1 of the keys as well
  std::optional<BlockConvolution<P>> keys;
  std::optional<RelationOptions> relation;
  std::optional<Tensor> geo;
  Places places;

  // The relation of so many images.
  Problem problem(Index batch) const {
    const Index transforms = keys ? convolution.to.channels : convolution.to.channels / 2;
    return robust_lr::describe(batch, from.channels, from.height, from.width, transforms, geo, *relation);
  }
};

// Reads the arguments `parameters` and `numbers` of the operators, which are in the order of schema.h.
template <class P>
class BlockReader {
  using T = typename P::Element;
  using A = typename P::Sum;

 public:
  BlockReader(const std::vector<Tensor>& parameters, const std::vector<Index>& numbers, ScalarType type)
      : parameters(parameters), numbers(numbers), type(type) {}

  bool ends() const { return next_number == numbers.size() && next_parameter == parameters.size(); }

  Index number() {
    STD_TORCH_CHECK(next_number < numbers.size(), "folded_block: numbers are missing");
    return numbers[next_number++];
  }

  BlockConvolution<P> convolution(const Shape& from) {
    const Index outputs = number(), size = number(), stride = number(), padding = number();
    const bool relu = number(), rectified = number();
    const Window window = describe(size, stride, padding);
    STD_TORCH_CHECK(outputs >= 1, "folded_block: a convolution has no outputs");
    STD_TORCH_CHECK(window.fits(from.height, from.width), "folded_block: the image is smaller than the kernel");
    const Tensor packed = tensor(), transposed = tensor();
    const std::optional<Tensor> bias = optional_tensor();
    check_weights<P>(packed, type, from.channels, outputs, window);
    check_weights<P>(transposed, type, outputs, from.channels, window);
    check_bias<P>(bias, outputs);
    const Shape to{outputs, window.size_after(from.height), window.size_after(from.width)};
    return {from, to, window, relu, rectified, data<T>(packed), data<T>(transposed), data_or_null<A>(bias)};
  }

  BlockLayer<P> layer(const Shape& from) {
    BlockLayer<P> layer{from};
    if (const bool relates = number()) {
      const bool joined = number();
      const Index kernel = number(), stride = number(), shared = number(), composability = number();
      const bool softmax = number(), mask = number();
      layer.relation = {kernel, stride, shared, composability, softmax, mask};
      layer.geo = optional_tensor();
      layer.convolution = convolution(from);
      if (!joined) layer.keys = convolution(from);
      check_relation(layer);
      const Shape& queries = layer.convolution.to;
      layer.to = {from.channels, queries.height, queries.width};
    } else {
      layer.convolution = convolution(from);
      layer.to = layer.convolution.to;
    }
    return layer;
  }

 private:
  Tensor tensor() {
    STD_TORCH_CHECK(next_parameter < parameters.size(), "folded_block: parameters are missing");
    return parameters[next_parameter++];
  }

  static void check_relation(const BlockLayer<P>& layer) {
    const Problem p = layer.problem(1);
    const Index transforms = p.groups * p.components;
    const Shape &from = layer.from, queries{transforms, p.out_height, p.out_width};
    const Shape joined{2 * transforms, from.height, from.width}, keys{transforms, from.height, from.width};
    STD_TORCH_CHECK(p.components >= 1 && (layer.keys ? layer.convolution.to == queries && layer.keys->to == keys
                                                     : p.stride == 1 && layer.convolution.to == joined),
                    "folded_block: queries and keys do not fit the relation");
    STD_TORCH_CHECK(!layer.geo || layer.geo->scalar_type() == kWideType<A>,
                    "folded_block: geo must be float32, or float64 where x is");
  }

  // A tensor without elements stands for none.
  std::optional<Tensor> optional_tensor() {
    const Tensor t = tensor();
    return t.numel() > 0 ? std::optional(t) : std::nullopt;
  }

  const std::vector<Tensor>& parameters;
  const std::vector<Index>& numbers;
  const ScalarType type;
  std::size_t next_parameter = 0, next_number = 0;
};

template <class P>
class FoldedBlock {
  using T = typename P::Element;
  using A = typename P::Sum;
  static constexpr bool kNarrow = !std::is_same_v<A, T>;

 public:
  FoldedBlock(const Tensor& x, const std::vector<Tensor>& parameters, const std::vector<Index>& numbers) : x(x) {
    STD_TORCH_CHECK(is_channels_last(x), "folded_block: x must be channels-last");
    BlockReader<P> reader(parameters, numbers, x.scalar_type());
    Shape shape{x.size(1), x.size(2), x.size(3)};
    masks_result = reader.number();
    if (const bool has_side = reader.number()) side = reader.convolution(shape);
    while (!reader.ends()) {
      layers.push_back(reader.layer(shape));
      shape = layers.back().to;
    }
    STD_TORCH_CHECK(layers.size() >= 2 && !layers.front().relation && !layers.back().relation,
                    "folded_block: the first and the last layer must be convolutions");
    STD_TORCH_CHECK((side ? side->to : layers.front().from) == shape,
                    "folded_block: the shortcut must have the shape of the result");
    for (BlockLayer<P>& layer : layers) place(layer);
  }

  // Returns the result, and what the gradient needs besides.
  std::tuple<Tensor, Tensor> run() const {
    Tensor out = result_of(layers.back().to);
    Tensor kept = torch::stable::empty({kept_bytes}, ScalarType::Byte, std::nullopt, x.device());
    each_part([&](Images images, Scratch& scratch) { run(images, out, kept, scratch); });
    return {out, kept};
  }

  // Returns the gradient by x.
  Tensor pull_back(const Tensor& dy, const Tensor& out, const Tensor& kept) const {
    STD_TORCH_CHECK(is_result(dy) && is_result(out),
                    "folded_block_gradient: dy must be like the result, channels-last");
    STD_TORCH_CHECK(kept.scalar_type() == ScalarType::Byte && kept.is_contiguous() && kept.numel() == kept_bytes,
                    "folded_block_gradient: what was kept is of another block");
    Tensor dx = result_of(layers.front().from);
    each_part([&](Images images, Scratch& scratch) { pull_back(images, dy, out, kept, dx, scratch); });
    return dx;
  }

 private:
  Tensor result_of(const Shape& shape) const { return result_like(x, shape.channels, shape.height, shape.width); }

  bool is_result(const Tensor& t) const {
    const Shape& shape = layers.back().to;
    return t.scalar_type() == x.scalar_type() && is_channels_last(t) &&
           has_shape(t, x.size(0), shape.channels, shape.height, shape.width);
  }

  void place(BlockLayer<P>& layer) {
    const auto take = [&](Index bytes) {
      const Index place = kept_bytes;
      kept_bytes += (bytes + kVectorBytes - 1) / kVectorBytes * kVectorBytes;
      return place;
    };
    const auto take_images = [&](const Shape& shape) { return take(x.size(0) * shape.size() * Index(sizeof(T))); };
    layer.places = {};
    if (&layer != &layers.back()) layer.places.y = take_images(layer.to);
    if (!layer.relation) return;
    layer.places.q = take_images(layer.convolution.to);
    if (layer.keys) layer.places.k = take_images(layer.keys->to);
    layer.places.stats = take(Stats<A>::size(layer.problem(x.size(0)), kNarrow) * Index(sizeof(A)));
  }

  // What a layer keeps of these images.
  static Pixels<T> kept_part(const Tensor& kept, Index place, const Shape& shape, Images images) {
    return part_of(reinterpret_cast<T*>(data<char>(kept) + place), shape, images);
  }
  Pixels<T> result_part(const BlockLayer<P>& layer, const Tensor& out, const Tensor& kept, Images images) const {
    return &layer == &layers.back() ? part_of(data<T>(out), layer.to, images)
                                    : kept_part(kept, layer.places.y, layer.to, images);
  }
  Pixels<const T> input_part(Images images) const { return constant(part_of(data<T>(x), layers.front().from, images)); }

  // Calls f(images, scratch memory) for parts of the batch. If there is more than one, threads get equally many parts
  // of about the same size. Parts of small images are multiples of kPixelsAtOnce, which convolutions compute together.
  template <class F>
  void each_part(F f) const {
    const Index batch = x.size(0), threads = thread_count();
    Index bytes = 0;
    for (const BlockLayer<P>& layer : layers) bytes += layer.to.size() * Index(sizeof(T));
    const Index unit = layers.back().to.pixels() <= kSmallImage ? kPixelsAtOnce : 1;
    const Index units = divide_up(batch, unit);
    Index each = divide_up(std::max<Index>(1, kBytesOfPart / bytes), unit);
    if (units > each) each = divide_up(units, divide_up(units, each * threads) * threads);
    each *= unit;
    const Index parts = divide_up(batch, each);
    const auto go = [&](Index begin, Index end) {
      static thread_local Scratch scratch;
      for (Index part = begin; part < end; ++part) {
        scratch.release();
        f(Images{part * each, std::min(batch, (part + 1) * each)}, scratch);
      }
    };
    parts < threads ? go(0, parts) : parallel_for(parts, go);
  }

  static Pixels<T> buffer(Scratch& scratch, const Shape& shape, Images images) {
    return {scratch.take<T>(images.count() * shape.size()), images.count(), shape.height, shape.width, shape.channels};
  }

  // The channels of images from `channel` on.
  template <class E>
  static Image<A> image(const Pixels<E>& t, Index channel = 0) {
    return {const_cast<T*>(t.data) + channel, t.height * t.width * t.channels, 1, t.channels, kNarrow};
  }

  // Statistics, which are of type A, from image n on.
  static Image<A> from_image(Image<A> image, Index n) {
    if (image.data == nullptr) return image;
    image.data = static_cast<A*>(image.data) + n * image.batch_stride;
    return image;
  }

  // The tensors of a relation, of a part of the batch.
  struct Relation {
    Problem p;
    Pixels<T> y, q, k;  // queries and keys that are made together are in q
    Image<A> prior, shift, total, wide_y;

    Image<A> queries() const { return image(q); }
    Image<A> keys() const { return k.data == nullptr ? image(q, q.channels / 2) : image(k); }
  };

  Relation relation(const BlockLayer<P>& layer, const Tensor& kept, Images images) const {
    const Problem whole = layer.problem(x.size(0));
    const Places& places = layer.places;
    const Stats<A> stats(reinterpret_cast<A*>(data<char>(kept) + places.stats), whole, kNarrow);
    return {layer.problem(images.count()),
            kept_part(kept, places.y, layer.to, images),
            kept_part(kept, places.q, layer.convolution.to, images),
            layer.keys ? kept_part(kept, places.k, layer.keys->to, images) : Pixels<T>{},
            prior<A>(layer.geo, whole),
            from_image(stats.shift, images.begin),
            from_image(stats.total, images.begin),
            from_image(stats.wide_y, images.begin)};
  }

  void run(Images images, const Tensor& out, const Tensor& kept, Scratch& scratch) const {
    Pixels<const T> from = input_part(images);
    const T* shortcut = from.data;
    if (side) {
      const Pixels<T> y = buffer(scratch, side->to, images);
      side->run(from, y);
      shortcut = y.data;
    }
    for (const BlockLayer<P>& layer : layers) {
      const Pixels<T> to = result_part(layer, out, kept, images);
      if (layer.relation) {
        const Relation r = relation(layer, kept, images);
        layer.convolution.run(from, r.q);
        if (layer.keys) layer.keys->run(from, r.k);
        run_forward<A>({r.p, image(from), r.queries(), r.keys(), image(to), r.prior, r.shift, r.total, r.wide_y});
      } else {
        layer.convolution.run(from, to, &layer == &layers.back() ? shortcut : nullptr);
      }
      from = constant(to);
    }
  }

  void pull_back(Images images, const Tensor& dy, const Tensor& out, const Tensor& kept, const Tensor& dx,
                 Scratch& scratch) const {
    const Shape& shape = layers.back().to;
    Pixels<const T> gradient = constant(part_of(data<T>(dy), shape, images));
    if (masks_result) gradient = masked(gradient, constant(part_of(data<T>(out), shape, images)), scratch);
    const T* shortcut = gradient.data;
    if (side) {
      const Pixels<T> by_side = buffer(scratch, side->from, images);
      side->pull_back(gradient, input_part(images), nullptr, by_side);
      shortcut = by_side.data;
    }
    for (auto layer = layers.rbegin(); layer != layers.rend(); ++layer) {
      const bool is_first = layer + 1 == layers.rend();
      const Pixels<const T> from = is_first ? input_part(images) : constant(result_part(layer[1], out, kept, images));
      const Pixels<T> to = is_first ? part_of(data<T>(dx), layer->from, images) : buffer(scratch, layer->from, images);
      if (layer->relation) {
        pull_back_relation(*layer, relation(*layer, kept, images), gradient, from, to, images, scratch);
      } else {
        layer->convolution.pull_back(gradient, from, is_first ? shortcut : nullptr, to);
      }
      gradient = constant(to);
    }
  }

  void pull_back_relation(const BlockLayer<P>& layer, const Relation& r, Pixels<const T> dy, Pixels<const T> from,
                          Pixels<T> to, Images images, Scratch& scratch) const {
    const Pixels<T> dvalues = buffer(scratch, layer.from, images), dq = buffer(scratch, layer.convolution.to, images);
    const Pixels<T> dk = layer.keys ? buffer(scratch, layer.keys->to, images) : dq;
    run_backward<A>({r.p, image(from), image(dvalues), image(dy), r.queries(), r.keys(),
                     kNarrow && r.p.softmax ? r.wide_y : image(r.y), image(dq),
                     layer.keys ? image(dk) : image(dq, dq.channels / 2), r.prior, r.shift, r.total, Image<A>{}});
    const T* given = dvalues.data;
    if (layer.keys) {
      const Pixels<T> sum = buffer(scratch, layer.from, images);
      layer.keys->pull_back(constant(dk), from, given, sum);
      given = sum.data;
    }
    layer.convolution.pull_back(constant(dq), from, given, to);
  }

  static Pixels<const T> constant(const Pixels<T>& t) { return {t.data, t.batch, t.height, t.width, t.channels}; }

  // The gradient by the input of the ReLU that `y` is the result of; PyTorch's, which lets it pass where y is NaN.
  static Pixels<const T> masked(Pixels<const T> dy, Pixels<const T> y, Scratch& scratch) {
    const Index size = dy.batch * dy.height * dy.width * dy.channels;
    T* const dx = scratch.take<T>(size);
    for (Index i = 0; i < size; ++i) dx[i] = widen(y.data[i]) <= 0 ? T(0) : dy.data[i];
    return {dx, dy.batch, dy.height, dy.width, dy.channels};
  }

  const Tensor& x;
  bool masks_result;                        // else the next block takes the gradient of the last ReLU
  std::optional<BlockConvolution<P>> side;  // of the shortcut
  std::vector<BlockLayer<P>> layers;
  Index kept_bytes = 0;
};

}  // namespace

std::tuple<Tensor, Tensor> folded_block(Tensor x, const std::vector<Tensor>& parameters,
                                        const std::vector<Index>& numbers) {
  return with_products(x.scalar_type(),
                       [&](auto products) { return FoldedBlock<decltype(products)>(x, parameters, numbers).run(); });
}

Tensor folded_block_gradient(Tensor dy, Tensor x, Tensor out, Tensor kept, const std::vector<Tensor>& parameters,
                             const std::vector<Index>& numbers) {
  return with_products(x.scalar_type(), [&](auto products) {
    return FoldedBlock<decltype(products)>(x, parameters, numbers).pull_back(dy, out, kept);
  });
}

}  // namespace robust_lr::cpu
