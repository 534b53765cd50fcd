"""Basics that every other room uses: errors, random streams, checks, files, statistics, devices."""
