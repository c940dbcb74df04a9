//! Laws of key switches, rotations and base conversion.

use std::ops::Range;

use heliostat::{
    arith::Modulus,
    engine::{EngineError, KeySwitchShape, Rotation, Shape},
};
use num_bigint::BigInt;

use super::{Bench, DENSE};
use crate::oracle::{converted, divide_rounding, negacyclic, product, reconstruct_modulo, residue, substitute};

impl Bench<'_> {
    pub(super) fn base_convert(&mut self) {
        let (n, all) = (self.ring.n(), self.ring.moduli().len());
        let polys = 3;
        let cases = [(0..all, 0..all), (0..1, 0..all), (all / 2..all, 0..1), (0..all, all - 1..all)];
        for (from, to) in if n <= DENSE { &cases[..] } else { &cases[..1] } {
            let moduli = &self.ring.moduli()[from.clone()];
            let x: Vec<u32> = {
                let x = self.random.batch(self.ring, Shape { polys, limbs: all });
                x.chunks(all * n).flat_map(|x| x[from.start * n..from.end * n].to_vec()).collect()
            };
            let found = self.backend.base_convert(self.ring, &self.up(&x), polys, from.clone(), to.clone()).unwrap();
            let found = self.down(&found);
            let (q, width) = (BigInt::from(product(moduli)), from.len());
            let mut expected = found.clone();
            for poly in 0..polys {
                for k in (0..n).step_by(if n <= DENSE { 1 } else { 37 }) {
                    let residues: Vec<u32> = (0..width).map(|i| x[(poly * width + i) * n + k]).collect();
                    let value = converted(moduli, &residues);
                    let exact = BigInt::from(reconstruct_modulo(moduli, &residues));
                    assert_eq!((&value - exact) % &q, BigInt::ZERO);
                    assert!(&value * 2 - (&q >> 20) < q && &value * 2 + (&q >> 20) > -&q, "{value} is not centred");
                    for (t, limb) in to.clone().enumerate() {
                        expected[(poly * to.len() + t) * n + k] = residue(self.ring.moduli()[limb], &value);
                    }
                }
            }
            self.same(&format!("base_convert {from:?} to {to:?}"), &found, &expected);
        }
    }

    pub(super) fn key_switch(&mut self) {
        let shape = KeySwitchShape::full(self.ring, 3);
        self.key_switches(shape);
        let limbs = shape.limbs;
        if limbs > 1 && self.ring.n() <= DENSE {
            self.key_switches(KeySwitchShape { polys: 5, limbs: limbs - 1, ..shape });
            self.key_switches(KeySwitchShape { polys: 1, limbs: limbs - 1, special: 2, digit_limbs: 2 });
        }
    }

    /// Every level of rings with several special primes and digits of several limbs.
    pub(super) fn hybrid(&mut self) {
        let data = self.ring.moduli().len() - 2;
        for (limbs, special, digit_limbs) in
            [(data, 2, 2), (5, 2, 2), (4, 2, 2), (1, 2, 2), (data, 2, 1), (3, 2, 3), (data, 2, 5), (4, 3, 3), (7, 1, 7)]
        {
            let shape = KeySwitchShape { polys: 2, limbs, special, digit_limbs };
            self.key_switches(shape);
            self.rotations(shape);
        }
    }

    fn key_switches(&mut self, shape: KeySwitchShape) {
        let (n, all) = (self.ring.n(), self.ring.moduli().len());
        let KeySwitchShape { polys, limbs, .. } = shape;
        let mut x = self.random.batch(self.ring, Shape { polys, limbs });
        if n > DENSE {
            self.sparsify(&mut x);
        }
        let key_shape = Shape { polys: shape.key_digits(self.ring) * 2, limbs: all };
        let worst: Vec<u32> =
            (0..shape.key_words(self.ring)).map(|i| self.ring.moduli()[i / n % all].value() - 1).collect();
        for key in [self.random.uniform(self.ring, key_shape), worst] {
            let key_ntt = self.forward(&self.up(&key), key_shape);
            let found = self.backend.key_switch(self.ring, &self.up(&x), shape, &key_ntt).unwrap();
            let found = self.down(&found);
            let mut expected = found.clone();
            for (poly, x) in x.chunks(limbs * n).enumerate() {
                self.switched(x, shape, &key, 1, &mut expected[poly * 2 * limbs * n..][..2 * limbs * n]);
            }
            self.same(&format!("key_switch {shape:?}"), &found, &expected);
        }
    }

    pub(super) fn rotate(&mut self) {
        self.rotations(KeySwitchShape::full(self.ring, 3));
    }

    fn rotations(&mut self, shape: KeySwitchShape) {
        let (n, all) = (self.ring.n(), self.ring.moduli().len());
        let (backend, ring, limbs) = (self.backend, self.ring, shape.limbs);
        let mut x = self.random.batch(ring, Shape { polys: shape.polys * 2, limbs });
        if n > DENSE {
            self.sparsify(&mut x);
        }
        let keys = self.random.uniform(ring, Shape { polys: 3 * shape.key_digits(ring) * 2, limbs: all });
        let keys_ntt = self.forward(&self.up(&keys), Shape { polys: 3 * shape.key_digits(ring) * 2, limbs: all });
        let dx = self.up(&x);
        let last = shape.polys - 1;
        let rotation = |input, element, key| Rotation { input, element, key };
        let batches = [
            // Many rotations of one input, each with its key; inputs out of order, one of them unused.
            vec![rotation(last, 3, 0), rotation(last, 2 * n - 1, 1), rotation(last, n + 1, 2)],
            vec![rotation(last, 5, 2), rotation(0, 5, 2), rotation(last, 1, 0)],
            // One key for all, as in output packing, in tiles that do not come out even.
            (0..6).map(|i| rotation(i % shape.polys, n / 2 + 1, 1)).collect(),
        ];
        for rotations in if n <= DENSE { &batches[..] } else { &batches[..2] } {
            let found = self.down(&backend.rotate(ring, &dx, shape, &keys_ntt, rotations).unwrap());
            let mut expected = found.clone();
            for (r, &Rotation { input, element, key }) in rotations.iter().enumerate() {
                let x = &x[input * 2 * limbs * n..][..2 * limbs * n];
                let key = &keys[key * shape.key_words(ring)..][..shape.key_words(ring)];
                let out = &mut expected[r * 2 * limbs * n..][..2 * limbs * n];
                self.switched(&x[limbs * n..], shape, key, element, out);
                for (limb, row) in x[..limbs * n].chunks(n).enumerate() {
                    let m = ring.moduli()[limb];
                    let c0 = substitute(m, row, element);
                    let out = &mut out[limb * n..][..n];
                    for k in (0..n).step_by(self.step()) {
                        out[k] = m.add(out[k], c0[k]);
                    }
                }
            }
            self.same(&format!("rotate {shape:?} {rotations:?}"), &found, &expected);
            // A batch is its rotations, one by one.
            let one_by_one: Vec<u32> = rotations
                .iter()
                .flat_map(|r| self.down(&backend.rotate(ring, &dx, shape, &keys_ntt, &[*r]).unwrap()))
                .collect();
            self.same("a batch of rotations is its rotations", &found, &one_by_one);
        }
        let none = backend.rotate(ring, &dx, shape, &keys_ntt, &[]).unwrap();
        assert!(self.down(&none).is_empty());
    }

    /// Coefficients that are compared with big integers: all of small rings, some of large ones.
    fn step(&self) -> usize {
        if self.ring.n() <= DENSE { 1 } else { 37 }
    }

    /// The key switch of `x`, `[limbs][N]`, with digits mapped by `X -> X^g`, at every compared coefficient of `out`,
    /// `[2][limbs][N]`; `key` in the coefficient domain.
    fn switched(&self, x: &[u32], shape: KeySwitchShape, key: &[u32], g: usize, out: &mut [u32]) {
        let (n, all, limbs) = (self.ring.n(), self.ring.moduli().len(), shape.limbs);
        let moduli = self.ring.moduli();
        let rows = shape.row_limbs(self.ring);
        let row_moduli: Vec<Modulus> = rows.iter().map(|&limb| moduli[limb]).collect();
        let digits: Vec<Vec<BigInt>> = (0..shape.digits())
            .map(|i| {
                let first = i * shape.digit_limbs;
                integers(&moduli[..limbs], first..limbs.min(first + shape.digit_limbs), x, n)
            })
            .collect();
        for part in 0..2 {
            let sums: Vec<Vec<u32>> = rows
                .iter()
                .map(|&limb| {
                    let m = moduli[limb];
                    let mut sum = vec![0; n];
                    for (i, digit) in digits.iter().enumerate() {
                        let digit: Vec<u32> = digit.iter().map(|d| residue(m, d)).collect();
                        let digit = substitute(m, &digit, g);
                        let term = negacyclic(m, &digit, &key[((i * 2 + part) * all + limb) * n..][..n]);
                        sum.iter_mut().zip(term).for_each(|(s, t)| *s = m.add(*s, t));
                    }
                    sum
                })
                .collect();
            for k in (0..n).step_by(self.step()) {
                let residues: Vec<u32> = sums.iter().map(|sum| sum[k]).collect();
                let mut value = BigInt::from(reconstruct_modulo(&row_moduli, &residues));
                for dropped in row_moduli[limbs..].iter().rev() {
                    value = divide_rounding(&value, dropped.value());
                }
                for limb in 0..limbs {
                    out[(part * limbs + limb) * n + k] = residue(moduli[limb], &value);
                }
            }
        }
    }

    pub(super) fn wrong_key_switches(&mut self) {
        let (n, all) = (self.ring.n(), self.ring.moduli().len());
        let (backend, ring) = (self.backend, self.ring);
        if all < 2 {
            return;
        }
        let refused = |name: &str, result: Result<(), EngineError>| match result {
            Err(EngineError::Shape { operation, .. }) => assert_eq!(operation, name),
            other => panic!("{name}: expected a shape error at N = {n}, found {other:?}"),
        };
        let full = KeySwitchShape::full(ring, 1);
        let x = self.up(&vec![0; (all - 1) * n]);
        let ciphertext = self.up(&vec![0; 2 * (all - 1) * n]);
        let key = self.up(&vec![0; full.key_words(ring)]);
        let short = self.up(&vec![0; full.key_words(ring) - 1]);
        for shape in [
            KeySwitchShape { polys: 2, ..full },
            KeySwitchShape { polys: usize::MAX, ..full },
            KeySwitchShape { limbs: 0, ..full },
            KeySwitchShape { limbs: all, ..full },
            KeySwitchShape { special: 0, ..full },
            KeySwitchShape { special: all, ..full },
            KeySwitchShape { digit_limbs: 0, ..full },
            KeySwitchShape { digit_limbs: 33, ..full },
        ] {
            refused("key_switch", backend.key_switch(ring, &x, shape, &key).map(drop));
            refused("rotate", backend.rotate(ring, &ciphertext, shape, &key, &[]).map(drop));
        }
        refused("key_switch", backend.key_switch(ring, &x, full, &short).map(drop));
        refused("key_switch", backend.key_switch(ring, &short, full, &key).map(drop));
        let good = Rotation { input: 0, element: 3, key: 0 };
        refused("rotate", backend.rotate(ring, &ciphertext, full, &short, &[good]).map(drop));
        refused("rotate", backend.rotate(ring, &x, full, &key, &[good]).map(drop));
        for bad in [
            Rotation { input: 1, ..good },
            Rotation { element: 2, ..good },
            Rotation { element: 2 * n + 1, ..good },
            Rotation { key: 1, ..good },
        ] {
            refused("rotate", backend.rotate(ring, &ciphertext, full, &key, &[good, bad]).map(drop));
        }
    }

    pub(super) fn wrong_conversions(&mut self) {
        let (n, all) = (self.ring.n(), self.ring.moduli().len());
        let x = self.up(&vec![0; 2 * n]);
        for (polys, from, to) in [
            (1, 0..1, 0..1),
            (2, 0..0, 0..1),
            (2, 0..1, 0..0),
            (2, all..all + 1, 0..1),
            (2, 0..1, 0..all + 1),
            (usize::MAX, 0..1, 0..1),
        ] {
            match self.backend.base_convert(self.ring, &x, polys, from, to) {
                Err(EngineError::Shape { operation: "base_convert", .. }) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

/// A digit of `x`, the limbs `digit`, as integers.
fn integers(moduli: &[Modulus], digit: Range<usize>, x: &[u32], n: usize) -> Vec<BigInt> {
    let residues = |k: usize| digit.clone().map(|limb| x[limb * n + k]).collect::<Vec<u32>>();
    match digit.len() {
        1 => (0..n).map(|k| BigInt::from(residues(k)[0])).collect(),
        _ => (0..n).map(|k| converted(&moduli[digit.clone()], &residues(k))).collect(),
    }
}
