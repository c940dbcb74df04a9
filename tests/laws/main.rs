//! The laws of the compute engine, instantiated for every backend.

#![allow(clippy::unwrap_used, clippy::panic)]

mod oracle;
#[path = "suite/mod.rs"]
mod suite;

use heliostat::engine::cpu::{CpuBackend, NttLibrary};

use crate::suite::laws;

#[test]
fn cpu_plain() {
    laws(&CpuBackend::with_ntt(NttLibrary::Plain, None));
}

#[test]
fn cpu_concrete() {
    laws(&CpuBackend::with_ntt(NttLibrary::Concrete, None));
}

#[cfg(feature = "tfhe-ntt")]
#[test]
fn cpu_tfhe() {
    laws(&CpuBackend::with_ntt(NttLibrary::Tfhe, None));
}

#[test]
fn cpu_on_one_thread_of_its_own() {
    laws(&CpuBackend::new(Some(1)));
}
