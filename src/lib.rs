//! nullhop.
#![allow(dead_code)]

pub(crate) mod clock;
pub(crate) mod provider;
pub(crate) mod telemetry;
