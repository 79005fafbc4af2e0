//! nullhop.
#![allow(missing_docs, dead_code)]
pub mod cli;
pub mod config;
pub mod hygiene;
pub mod provider;
