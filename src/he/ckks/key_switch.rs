//! Rotations and relinearisation: key switches with centred digits.
//!
//! The engine takes a digit of one limb for an integer in `[0, p)`. Its mean, `p/2` in every coefficient, is the polynomial
//! `p / (1 - X)`, which is up to `2N/pi` times `p/2` at the roots of unity next to 1: there the errors of the key would come out
//! `sqrt(N)` times stronger than elsewhere, and a slot is the value at one root. So `h = (p-1)/2` is added to every coefficient
//! before a key switch, and the key switch of `h` alone is taken off after it: what is left are digits less `h`, which are
//! centred. That second key switch is the same for all ciphertexts of a level and is kept.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use super::{
    super::{Domain, HeError, Result},
    CkksCiphertexts, CkksServer, rotation_element,
};
use crate::engine::{Buffer, GatherItem, KeySwitchShape, Rotation, Shape};

/// Which offset: of a number of limbs, before a key switch or after that with a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Offset {
    Before(usize),
    AfterRotation(usize, usize),
    AfterRelinearisation(usize),
}

/// Offsets that were needed so far, `[2][limbs][N]` in the coefficient domain.
#[derive(Default)]
pub(super) struct Offsets(Mutex<HashMap<Offset, Buffer>>);

impl CkksServer {
    fn offset(&self, offset: Offset, make: impl FnOnce() -> Result<Buffer>) -> Result<Buffer> {
        let kept = || self.offsets.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(buffer) = kept().get(&offset) {
            return Ok(buffer.clone());
        }
        let buffer = make()?;
        kept().insert(offset, buffer.clone());
        Ok(buffer)
    }

    /// `(0, h)`.
    fn before(&self, limbs: usize) -> Result<Buffer> {
        self.offset(Offset::Before(limbs), || {
            let n = self.ctx.params().n();
            let mut words = vec![0; 2 * limbs * n];
            for (limb, out) in words[limbs * n..].chunks_mut(n).enumerate() {
                out.fill((self.ctx.ring().moduli()[limb].value() - 1) / 2);
            }
            Ok(self.ctx.backend().upload(&words)?)
        })
    }

    /// A batch of rotations, hoisted: rotation `(k, steps)` is ciphertext `k` with its slots rotated by `steps` to the left.
    ///
    /// # Errors
    /// [`HeError::MissingRotationKey`] for steps without a key.
    pub fn rotate(&self, x: &CkksCiphertexts, rotations: &[(usize, usize)]) -> Result<CkksCiphertexts> {
        let n = self.ctx.params().n();
        let elements: Vec<_> = rotations.iter().map(|&(input, steps)| (input, rotation_element(n, steps))).collect();
        self.automorphisms(x, &elements)
    }

    /// [`Self::rotate`] by Galois elements, conjugation among them.
    ///
    /// # Errors
    /// As [`Self::rotate`], and for ciphertexts of three parts.
    pub fn automorphisms(&self, x: &CkksCiphertexts, rotations: &[(usize, usize)]) -> Result<CkksCiphertexts> {
        let (params, inner) = (self.ctx.params(), self.ctx.inner());
        if x.parts != 2 {
            return Err(HeError::shape("rotate", "a product must be relinearised first"));
        }
        let key = |&(input, element): &(usize, usize)| match self.elements.iter().position(|&g| g == element) {
            Some(key) => Ok(Rotation { input, element, key }),
            None => Err(HeError::MissingRotationKey { element }),
        };
        let batch = rotations.iter().map(key).collect::<Result<Vec<_>>>()?;
        let x = self.to(Domain::Coefficient, x)?;
        let shape = params.key_switch_shape(x.count, x.limbs);
        let buffer = if shape.digit_limbs == 1 {
            self.rotate_centred(&x, shape, &batch)?
        } else {
            self.ctx.backend().rotate(self.ctx.ring(), &x.buffer, shape, &self.galois, &batch)?
        };
        inner.count(|c| &c.key_switches, batch.len());
        inner.count(|c| &c.ntts, (x.count * shape.digits() + batch.len() * 2) * shape.rows());
        let ledger = x.ledger.key_switched(params, x.limbs);
        Ok(CkksCiphertexts { buffer, count: batch.len(), ledger, ..x })
    }

    fn rotate_centred(&self, x: &CkksCiphertexts, shape: KeySwitchShape, batch: &[Rotation]) -> Result<Buffer> {
        let (ring, backend, limbs) = (self.ctx.ring(), self.ctx.backend(), x.limbs);
        let words = 2 * limbs * self.ctx.params().n();
        let before = self.before(limbs)?;
        let spread = backend.gather(&[&before], words, &vec![Some((0, 0)); x.count])?;
        let shifted = backend.add(ring, &x.buffer, &spread, x.shape())?;
        let turned = backend.rotate(ring, &shifted, shape, &self.galois, batch)?;
        let mut keys: Vec<&Rotation> = Vec::new();
        let mut items: Vec<GatherItem> = Vec::with_capacity(batch.len());
        for rotation in batch {
            let known = keys.iter().position(|known| known.key == rotation.key);
            items.push(Some((known.unwrap_or(keys.len()), 0)));
            if known.is_none() {
                keys.push(rotation);
            }
        }
        let after = |rotation: &&Rotation| {
            self.offset(Offset::AfterRotation(limbs, rotation.key), || {
                let one = KeySwitchShape { polys: 1, ..shape };
                let rotation = Rotation { input: 0, ..**rotation };
                Ok(backend.rotate(ring, &before, one, &self.galois, &[rotation])?)
            })
        };
        let afters = keys.iter().map(after).collect::<Result<Vec<_>>>()?;
        let afters = backend.gather(&afters.iter().collect::<Vec<_>>(), words, &items)?;
        Ok(backend.sub(ring, &turned, &afters, Shape { polys: 2 * batch.len(), limbs })?)
    }

    /// Products of three parts as ciphertexts of two: a key switch of the third.
    ///
    /// # Errors
    /// If they have not three parts.
    pub fn relinearise(&self, x: &CkksCiphertexts) -> Result<CkksCiphertexts> {
        let (params, ring, backend, limbs) = (self.ctx.params(), self.ctx.ring(), self.ctx.backend(), x.limbs);
        if x.parts != 3 {
            return Err(HeError::shape("relinearise", format!("a ciphertext of {} parts", x.parts)));
        }
        let x = self.to(Domain::Coefficient, x)?;
        let words = limbs * params.n();
        let pick = |parts: std::ops::Range<usize>| -> Result<_> {
            let items: Vec<GatherItem> =
                (0..x.count).flat_map(|k| parts.clone().map(move |part| Some((0, 3 * k + part)))).collect();
            Ok(backend.gather(&[&x.buffer], words, &items)?)
        };
        let shape = params.key_switch_shape(x.count, limbs);
        let (mut first, mut third) = (pick(0..2)?, pick(2..3)?);
        let both = Shape { polys: 2 * x.count, limbs };
        if shape.digit_limbs == 1 {
            let before = backend.gather(&[&self.before(limbs)?], words, &vec![Some((0, 1)); x.count])?;
            third = backend.add(ring, &third, &before, Shape { polys: x.count, limbs })?;
            let after = self.offset(Offset::AfterRelinearisation(limbs), || {
                let offset = backend.gather(&[&self.before(limbs)?], words, &[Some((0, 1))])?;
                let one = KeySwitchShape { polys: 1, ..shape };
                Ok(backend.key_switch(ring, &offset, one, &self.relinearisation)?)
            })?;
            let after = backend.gather(&[&after], 2 * words, &vec![Some((0, 0)); x.count])?;
            first = backend.sub(ring, &first, &after, both)?;
        }
        let switched = backend.key_switch(ring, &third, shape, &self.relinearisation)?;
        let buffer = backend.add(ring, &first, &switched, both)?;
        self.ctx.inner().count(|c| &c.key_switches, x.count);
        self.ctx.inner().count(|c| &c.ntts, x.count * (shape.digits() + 2) * shape.rows());
        let ledger = x.ledger.key_switched(params, limbs);
        Ok(CkksCiphertexts { buffer, parts: 2, ledger, ..x })
    }
}
