"""The tables and figures of Hu et al. 2019."""
