"""The ground that every other room stands on: errors, random streams, checks, files, statistics, devices."""
