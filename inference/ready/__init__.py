"""Models that come trained: masks and classes of one's own images, whatever files they are in."""
