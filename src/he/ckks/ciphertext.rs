//! Batches of ciphertexts and of plaintexts on the device.

use super::{super::Domain, Ledger};
use crate::engine::{Buffer, Shape};

/// A batch of ciphertexts of one form: as many limbs, parts and one [`Ledger`].
#[derive(Clone, Debug)]
pub struct CkksCiphertexts {
    /// The public seed of the client whose key encrypts them.
    pub(super) owner: [u8; 32],
    pub(super) count: usize,
    /// 2, or 3 between a product and its relinearisation.
    pub(super) parts: usize,
    pub(super) limbs: usize,
    pub(super) domain: Domain,
    /// `[count][parts][limbs][N]`.
    pub(super) buffer: Buffer,
    pub(super) ledger: Ledger,
}

impl CkksCiphertexts {
    /// Ciphertexts in the batch.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Limbs; the level is the number of times that a rescale leaves room for the message.
    pub fn limbs(&self) -> usize {
        self.limbs
    }

    /// Parts: 2, or 3 for a product that is not yet relinearised.
    pub fn parts(&self) -> usize {
        self.parts
    }

    /// Scale, magnitude and error.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Replaces the bound on the slots by one that the caller knows from elsewhere, such as a calibration: the ledger's own adds
    /// up worst cases. If it is wrong, a wrap modulo q may go unnoticed until the holder of the key decrypts.
    pub fn with_magnitude(mut self, magnitude: f64) -> Self {
        self.ledger = self.ledger.bounded(magnitude);
        self
    }

    /// The same ciphertexts with slots divided by `factor`: their scale is read as that much larger. Costs nothing and adds no
    /// error.
    pub fn divided_by(mut self, factor: f64) -> Self {
        let Ledger { scale, magnitude, error } = self.ledger;
        self.ledger = Ledger { scale: scale * factor, magnitude: magnitude / factor, error: error / factor };
        self
    }

    /// The polynomials of all ciphertexts.
    pub(super) fn shape(&self) -> Shape {
        Shape { polys: self.count * self.parts, limbs: self.limbs }
    }
}

/// Encoded plaintexts on the device, NTT domain.
#[derive(Clone, Debug)]
pub struct CkksPlaintexts {
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    pub(super) limbs: usize,
    pub(super) scale: f64,
    /// The largest sum over the inputs of magnitudes at one slot of an output.
    pub(super) sum: f64,
    /// `[outputs][inputs][limbs][N]`.
    pub(super) buffer: Buffer,
}

impl CkksPlaintexts {
    /// Outputs and inputs of the matrix that they are.
    pub fn dims(&self) -> (usize, usize) {
        (self.outputs, self.inputs)
    }

    /// Units of the number 1.
    pub fn scale(&self) -> f64 {
        self.scale
    }
}
