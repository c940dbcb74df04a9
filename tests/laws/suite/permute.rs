//! Laws of operations that move coefficients or items.

use heliostat::engine::{EngineError, Shape};

use super::{Bench, DENSE};
use crate::oracle::substitute;

impl Bench<'_> {
    pub(super) fn automorphism_ntt(&mut self) {
        let (n, limbs) = (self.ring.n(), self.ring.moduli().len());
        let (backend, ring) = (self.backend, self.ring);
        let shape = Shape { polys: 3, limbs };
        let x = self.random.batch(ring, shape);
        let there = self.forward(&self.up(&x), shape);
        for g in [1, 3, n + 1, 2 * n - 1, self.random.below(n) * 2 + 1] {
            let expected = x.chunks(n).enumerate().flat_map(|(row, f)| substitute(ring.moduli()[row % limbs], f, g));
            let mapped = backend.automorphism_ntt(ring, &there, shape, g).unwrap();
            let back = self.down(&backend.ntt_inverse(ring, &mapped, shape).unwrap());
            self.same(&format!("f(X^{g}) in the NTT domain"), &back, &expected.collect::<Vec<_>>());
        }
    }

    pub(super) fn gather(&mut self) {
        let words = if self.ring.n() <= DENSE { 12 } else { self.ring.n() };
        let (a, b): (Vec<u32>, Vec<u32>) =
            ((0..7 * words).map(|i| i as u32).collect(), (0..3 * words + 5).map(|i| !(i as u32)).collect());
        let (da, db) = (self.up(&a), self.up(&b));
        for items in [
            vec![],
            vec![None, None],
            (0..7).map(|i| Some((0, i))).collect(),
            vec![Some((1, 2)), Some((0, 6)), Some((0, 5)), None, Some((0, 0)), Some((0, 1)), Some((1, 2)), None, None],
        ] {
            let found = self.down(&self.backend.gather(&[&da, &db], words, &items).unwrap());
            let expected = items.iter().flat_map(|item| match *item {
                Some((source, index)) => [&a, &b][source][index * words..][..words].to_vec(),
                None => vec![0; words],
            });
            self.same("gather", &found, &expected.collect::<Vec<_>>());
        }
        let none = self.backend.gather(&[&da], 0, &[Some((0, 3))]).unwrap();
        assert!(self.down(&none).is_empty());
    }

    pub(super) fn wrong_gathers(&mut self) {
        let x = self.up(&[1, 2, 3, 4, 5]);
        for (words, item) in [(2, (0, 2)), (6, (0, 0)), (1, (1, 0)), (usize::MAX, (0, 1)), (2, (0, usize::MAX))] {
            match self.backend.gather(&[&x], words, &[Some(item)]) {
                Err(EngineError::Shape { operation: "gather", .. }) => {}
                other => panic!("{other:?}"),
            }
        }
        let sizes = self.backend.gather(&[&x], usize::MAX, &[None, None]);
        assert!(matches!(sizes, Err(EngineError::Shape { operation: "gather", .. })), "{sizes:?}");
    }
}
