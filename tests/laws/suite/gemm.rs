//! Laws of products with matrices of integers, and of weight polynomials made from them.

use heliostat::engine::{
    EngineError, ExpandShape, GemmShape, MatmulShape, RingGemmShape, RingOperand, Shape, small_words,
};
use num_bigint::{BigInt, BigUint};

use super::{Bench, DENSE};
use crate::oracle::residue;

impl Bench<'_> {
    /// Weights of every kind: uniform, or the largest of one sign.
    fn weights(&mut self, count: usize, kind: usize) -> Vec<i16> {
        (0..count)
            .map(|_| match kind {
                0 => self.random.word() as i16,
                1 => i16::MIN,
                2 => i16::MAX,
                _ => [0, 1, -1, i16::MIN, i16::MAX][self.random.below(5)],
            })
            .collect()
    }

    pub(super) fn modular_gemm(&mut self) {
        let (n, all) = (self.ring.n(), self.ring.moduli().len());
        let mut cases = vec![
            (GemmShape { inputs: 1, outputs: 1, polys: 1, limbs: 1 }, 0),
            (GemmShape { inputs: 5, outputs: 7, polys: 2, limbs: all }, 0),
            (GemmShape { inputs: 34, outputs: 17, polys: 1, limbs: all }, 3),
            (GemmShape { inputs: 67, outputs: 3, polys: 1, limbs: all }, 1),
        ];
        if n > DENSE {
            cases = vec![(GemmShape { inputs: 3, outputs: 5, polys: 1, limbs: all.min(2) }, 0)];
        } else if n == 32 {
            // What a layer has, in the worst case for every sum.
            cases.push((GemmShape { inputs: 3072, outputs: 2, polys: 1, limbs: all.min(2) }, 1));
            cases.push((GemmShape { inputs: 3072, outputs: 2, polys: 1, limbs: 1 }, 2));
        }
        for (shape, kind) in cases {
            let GemmShape { inputs, outputs, polys, limbs } = shape;
            let modulus = |row: usize| self.ring.moduli()[row % limbs];
            let x = if kind == 0 || kind == 3 {
                self.random.batch(self.ring, Shape { polys: inputs * polys, limbs })
            } else {
                (0..inputs * polys * limbs * n).map(|i| modulus(i / n).value() - 1).collect()
            };
            let weights = self.weights(outputs * inputs, kind);
            let modulus = |row: usize| self.ring.moduli()[row % limbs];
            let packed = self.up(&small_words(&weights));
            let found = self.backend.modular_gemm(self.ring, &self.up(&x), &packed, shape).unwrap();
            let item = polys * limbs * n;
            let expected: Vec<u32> = (0..outputs * item)
                .map(|at| {
                    let (o, word) = (at / item, at % item);
                    let sum: i128 =
                        (0..inputs).map(|i| weights[o * inputs + i] as i128 * x[i * item + word] as i128).sum();
                    residue(modulus(word / n), &BigInt::from(sum))
                })
                .collect();
            self.same(&format!("modular_gemm {shape:?}"), &self.down(&found), &expected);
        }
    }

    pub(super) fn expand_matrix(&mut self) {
        let (n, all) = (self.ring.n(), self.ring.moduli().len());
        let mut cases = vec![
            // (inner, cols, block, columns, outputs, inputs)
            (n / 4 + 1, 5, n / 4, 4, 0..2, 0..2),
            (7, 11, 2, 3, 1..4, 1..4),
            (9, 5, 3, 2, 2..3, 0..3),
            (1, 1, 1, 1, 0..1, 0..1),
            (4, 6, 1, n, 0..1, 0..4),
            (n, 3, n, 1, 1..3, 0..1),
            (5, 5, 2, 2, 1..1, 0..2),
        ];
        if n > DENSE {
            cases = vec![(100, 37, 16, 8, 3..5, 5..7), (16, 3, 4, n / 4, 0..1, 2..4)];
        }
        for (inner, cols, block, columns, outputs, inputs) in cases {
            let weights = self.weights(inner * cols, if inner == 7 { 3 } else { 0 });
            let shape = ExpandShape { inner, cols, block, columns, limbs: all, outputs, inputs };
            let found = self.backend.expand_matrix(self.ring, &self.up(&small_words(&weights)), &shape).unwrap();
            let polys = shape.outputs.len() * shape.inputs.len();
            let found = self.backend.ntt_inverse(self.ring, &found, Shape { polys, limbs: all }).unwrap();
            let mut expected = Vec::new();
            for g in shape.outputs.clone() {
                for b in shape.inputs.clone() {
                    for m in self.ring.moduli() {
                        expected.extend((0..n).map(|e| {
                            let (o, j) = (e / block, e % block);
                            let (row, col) = (b * block + j, g * columns + o);
                            let inside = o < columns && row < inner && col < cols;
                            if inside { residue(*m, &BigInt::from(weights[row * cols + col])) } else { 0 }
                        }));
                    }
                }
            }
            self.same(&format!("expand_matrix {shape:?}"), &self.down(&found), &expected);
        }
    }

    /// The product of two operations in one, where the degree of the weights is a power of two, and where it is not.
    pub(super) fn matmul_matrix(&mut self) {
        let (n, all) = (self.ring.n(), self.ring.moduli().len());
        for (inner, cols, block, columns, outputs, inputs) in [
            (n / 4 + 1, 5, n / 4, 2, 0..3, 0..2),
            (41, 11, 4, 2, 1..4, 1..11),
            (100, 7, 2, 2, 0..4, 3..20),
            (9, 5, 3, 1, 2..3, 0..3),
            (3, 2, n, 1, 0..2, 0..1),
            (5, 5, 2, 2, 1..1, 0..2),
        ] {
            let columns = usize::min(columns, n / block);
            let weights = self.weights(inner * cols, 3);
            let shape = ExpandShape { inner, cols, block, columns, limbs: all, outputs, inputs };
            let (inputs, outputs) = (shape.inputs.len(), shape.outputs.len());
            let ct = self.random.batch(self.ring, Shape { polys: 2 * inputs, limbs: all });
            let (ct, weights) = (self.up(&ct), self.up(&small_words(&weights)));
            let found = self.backend.matmul_matrix(self.ring, &ct, &weights, &shape).unwrap();
            let plain = self.backend.expand_matrix(self.ring, &weights, &shape).unwrap();
            let product = MatmulShape { groups: 1, inputs, outputs, limbs: all };
            let expected = self.backend.matmul_plain(self.ring, &ct, &plain, product).unwrap();
            self.same(&format!("matmul_matrix {shape:?}"), &self.down(&found), &self.down(&expected));
        }
    }

    /// Ring products do not depend on the ring of polynomials.
    pub(super) fn ring_gemm(&mut self) {
        for bits in [1, 13, 31, 32, 33, 37, 48, 63, 64] {
            for (batch, rows, inner, cols) in
                [(1, 1, 1, 1), (2, 3, 17, 5), (1, 65, 5, 66), (3, 1, 33, 7), (1, 17, 40, 64)]
            {
                let shape = RingGemmShape { bits, batch, rows, inner, cols };
                self.ring_products(shape, bits == 37);
            }
        }
        for bits in [32, 64] {
            self.ring_products(RingGemmShape { bits, batch: 1, rows: 2, inner: 3072, cols: 3 }, true);
        }
    }

    fn ring_products(&mut self, shape: RingGemmShape, worst: bool) {
        let RingGemmShape { bits, batch, rows, inner, cols } = shape;
        let words = shape.element_words();
        let element = |x: &[u32], i: usize| match words {
            1 => x[i] as u64,
            _ => x[2 * i] as u64 | (x[2 * i + 1] as u64) << 32,
        };
        // Bits beyond the ring are noise that must not matter.
        let mut operand = |count: usize| -> Vec<u32> {
            (0..count * words).map(|_| if worst { u32::MAX } else { self.random.word() as u32 }).collect()
        };
        let a = operand(batch * rows * inner);
        let b = operand(batch * inner * cols);
        let small = self.weights(batch * inner * cols, if worst { 1 } else { 0 });
        let modulus = BigUint::from(1u8) << bits;
        for which in [RingOperand::Ring, RingOperand::Small] {
            let right = match which {
                RingOperand::Ring => self.up(&b),
                RingOperand::Small => self.up(&small_words(&small)),
            };
            let found = self.backend.ring_gemm(&self.up(&a), &right, which, shape).unwrap();
            let mut expected = Vec::new();
            for row in 0..batch * rows {
                for col in 0..cols {
                    let sum: BigInt = (0..inner)
                        .map(|k| {
                            let at = (row / rows * inner + k) * cols + col;
                            let right = match which {
                                RingOperand::Ring => BigInt::from(element(&b, at)),
                                RingOperand::Small => BigInt::from(small[at]),
                            };
                            BigInt::from(element(&a, row * inner + k)) * right
                        })
                        .sum();
                    let modulus = BigInt::from(modulus.clone());
                    let value = ((sum % &modulus) + &modulus) % &modulus;
                    let value = u64::try_from(value).unwrap();
                    expected.push(value as u32);
                    if words == 2 {
                        expected.push((value >> 32) as u32);
                    }
                }
            }
            self.same(&format!("ring_gemm {shape:?} {which:?}"), &self.down(&found), &expected);
        }
    }

    pub(super) fn wrong_gemms(&mut self) {
        let (n, all) = (self.ring.n(), self.ring.moduli().len());
        let (backend, ring) = (self.backend, self.ring);
        let refused = |name: &str, result: Result<(), EngineError>| match result {
            Err(EngineError::Shape { operation, .. }) => assert_eq!(operation, name),
            other => panic!("{name}: expected a shape error at N = {n}, found {other:?}"),
        };
        let x = self.up(&vec![0; 3 * n]);
        let weights = self.up(&[0; 3]);
        let good = GemmShape { inputs: 3, outputs: 2, polys: 1, limbs: 1 };
        assert!(backend.modular_gemm(ring, &x, &weights, good).is_ok());
        for shape in [
            GemmShape { inputs: 0, ..good },
            GemmShape { inputs: 4, ..good },
            GemmShape { outputs: 3, ..good },
            GemmShape { polys: 2, ..good },
            GemmShape { limbs: 0, ..good },
            GemmShape { limbs: all + 1, ..good },
            GemmShape { outputs: usize::MAX, ..good },
        ] {
            refused("modular_gemm", backend.modular_gemm(ring, &x, &weights, shape).map(drop));
        }
        let good = RingGemmShape { bits: 20, batch: 1, rows: 1, inner: 3, cols: 1 };
        for operand in [RingOperand::Ring, RingOperand::Small] {
            for shape in [
                RingGemmShape { bits: 0, ..good },
                RingGemmShape { bits: 65, ..good },
                RingGemmShape { bits: 33, ..good },
                RingGemmShape { inner: 0, ..good },
                RingGemmShape { rows: 2, ..good },
                RingGemmShape { cols: 4, ..good },
                RingGemmShape { batch: usize::MAX, ..good },
            ] {
                refused("ring_gemm", backend.ring_gemm(&weights, &weights, operand, shape).map(drop));
            }
        }
        let good = ExpandShape { inner: 2, cols: 3, block: 1, columns: 2, limbs: 1, outputs: 0..2, inputs: 0..2 };
        assert!(backend.expand_matrix(ring, &weights, &good).is_ok());
        for shape in [
            ExpandShape { inner: 3, ..good.clone() },
            ExpandShape { block: 0, ..good.clone() },
            ExpandShape { columns: 0, ..good.clone() },
            ExpandShape { columns: n + 1, ..good.clone() },
            ExpandShape { limbs: all + 1, ..good.clone() },
            ExpandShape { outputs: 0..3, ..good.clone() },
            ExpandShape { inputs: 1..3, ..good.clone() },
        ] {
            refused("expand_matrix", backend.expand_matrix(ring, &weights, &shape).map(drop));
        }
    }
}
