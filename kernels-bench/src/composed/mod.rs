//! Operations made of several kernels, checked by decryption: a rotation, a ciphertext-plaintext product, encrypted matrix
//! products for every packing there is, and the linear layers of BERT-base.

mod bert;
mod layer;
mod packings;
mod rlwe;
mod single;

use std::cell::RefCell;

pub use self::{
    bert::{LAYERS, whole_model},
    packings::whole_columns,
    single::{BAR_DIMENSION, CLOCK},
};
use crate::{
    Error, Result,
    args::Arguments,
    ceilings::Ceilings,
    devices::{Device, Devices},
    measure::{Group, excuse},
    stats::Effort,
};

/// A rotation of one ciphertext.
pub const ROTATION: &str = "rotation";

/// A ciphertext times a plaintext, both in NTT form.
pub const PRODUCT: &str = "ct_pt_product";

/// The server's share of an encrypted linear layer.
pub const MATMUL: &str = "encrypted_matmul";

/// The same for the layers of BERT-base.
pub const BERT: &str = "bert_base_linear";

/// The same in batch-column packing, for one of as many inferences as fill the rows.
pub const COLUMNS: &str = "bert_base_columns";

/// All composed operations, in the order of a run.
pub const NAMES: [&str; 5] = [ROTATION, PRODUCT, MATMUL, BERT, COLUMNS];

/// What a run measures with.
pub struct Bench<'a> {
    /// The command line.
    pub arguments: &'a Arguments,
    /// Where.
    pub devices: &'a Devices,
    /// Limits of the main devices, in their order.
    pub ceilings: &'a [Ceilings],
    /// How long.
    pub effort: Effort,
    /// What was left out, and why.
    pub not_run: RefCell<Vec<String>>,
}

impl Bench<'_> {
    /// What a device made of a piece of work; notes it down if the device cannot do it at all.
    ///
    /// # Errors
    /// Every other error.
    pub fn attempt<T>(&self, device: &Device, what: &str, result: Result<T>) -> Result<Option<T>> {
        let refuse = |error: Error| match excuse(&error) {
            Some(reason) if device.as_gpu().is_some() => {
                let label = device.label();
                let note = format!("{what} on {}, {}: {reason}", label.backend, label.form);
                let mut notes = self.not_run.borrow_mut();
                if !notes.contains(&note) {
                    notes.push(note);
                }
                Ok(None)
            }
            _ => Err(error),
        };
        result.map_or_else(refuse, |value| Ok(Some(value)))
    }

    /// The main devices with their limits, those that `fits` lets through.
    fn devices(&self, fits: impl Fn(&Device) -> bool) -> impl Iterator<Item = (&Device, &Ceilings)> {
        self.devices.main.iter().zip(self.ceilings).filter(move |(device, _)| fits(device))
    }
}

/// Measures all that was asked for and hands over each group of rows.
///
/// # Errors
/// Whatever a device, the encryption or `done` reports.
pub fn run(bench: &Bench, mut done: impl FnMut(Group) -> Result<()>) -> Result<()> {
    let wants = |name| bench.arguments.wants(name);
    for n in single::dimensions(bench) {
        if wants(ROTATION) {
            done(single::rotation(bench, n)?)?;
        }
        if wants(PRODUCT) {
            done(single::product(bench, n)?)?;
        }
    }
    if wants(MATMUL) {
        layer::run(bench, &mut done)?;
        packings::run(bench, &mut done)?;
    }
    if wants(BERT) {
        bert::run(bench, &mut done)?;
    }
    if wants(COLUMNS) {
        packings::bert_columns(bench, &mut done)?;
    }
    Ok(())
}

/// Whether a device is no software adapter, which would take hours for what the others do in seconds.
fn in_hardware(device: &Device) -> bool {
    device.as_gpu().is_none() || device.is_real_gpu()
}
