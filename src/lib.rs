//! nullhop.
#![allow(missing_docs, dead_code)]
pub(crate) mod admission;
pub(crate) mod app;
pub(crate) mod clock;
pub mod cli;
pub mod config;
pub(crate) mod drain;
pub mod hygiene;
pub(crate) mod listener;
pub(crate) mod provider;
pub(crate) mod proxy_protocol;
pub(crate) mod relay;
pub(crate) mod route;
pub(crate) mod server;
pub(crate) mod socket;
pub(crate) mod telemetry;
pub(crate) mod tls;
pub(crate) mod upstream;
