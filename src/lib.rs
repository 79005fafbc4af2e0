//! nullhop.
