//! The laws, written once over `dyn Backend`.

mod gemm;
mod key_switch;
mod permute;

use std::sync::Arc;

use heliostat::{
    arith::primes::ntt_primes,
    engine::{Backend, Buffer, EngineError, MatmulShape, RnsRing, Shape},
};
use num_bigint::BigInt;

use crate::oracle::{Random, divide_rounding, evaluate, negacyclic, reconstruct, residue, shift, substitute};

/// Above this dimension dense quadratic oracles give way to spot checks and sparse operands.
const DENSE: usize = 256;

/// Everything that [`Backend`] promises, on rings of every size and shape that the parameter sets have.
pub fn laws(backend: &dyn Backend) {
    for (n, primes) in [
        (32, ntt_primes(30, 32, 4).unwrap()),
        (64, ntt_primes(27, 64, 2).unwrap()),
        (32, ntt_primes(20, 32, 1).unwrap()),
        // Moduli far apart, the special one smaller than the others, then larger.
        (64, [ntt_primes(30, 64, 1).unwrap(), ntt_primes(20, 64, 2).unwrap(), ntt_primes(14, 64, 1).unwrap()].concat()),
        (
            128,
            [ntt_primes(12, 128, 1).unwrap(), ntt_primes(20, 128, 1).unwrap(), ntt_primes(30, 128, 1).unwrap()]
                .concat(),
        ),
        (1024, ntt_primes(30, 1024, 3).unwrap()),
        (4096, ntt_primes(27, 4096, 4).unwrap()),
        (8192, ntt_primes(30, 8192, 6).unwrap()),
        (16384, ntt_primes(30, 16384, 3).unwrap()),
    ] {
        laws_in(backend, &Arc::new(RnsRing::new(n, &primes).unwrap()));
    }
    hybrid_laws(backend);
}

/// Key switches with several special primes and with digits of several limbs, on all levels.
pub fn hybrid_laws(backend: &dyn Backend) {
    let data = [ntt_primes(30, 32, 5).unwrap(), ntt_primes(20, 32, 1).unwrap(), ntt_primes(29, 32, 2).unwrap()];
    let ring = Arc::new(RnsRing::new(32, &data.concat()).unwrap());
    Bench { backend, ring: &ring, random: Random(8) }.hybrid();
}

/// The laws in one ring.
pub fn laws_in(backend: &dyn Backend, ring: &Arc<RnsRing>) {
    let mut bench = Bench { backend, ring, random: Random(ring.n() as u64) };
    bench.transfers();
    bench.ntt_is_evaluation_and_inverts();
    bench.ntt_turns_products_into_convolutions();
    bench.pointwise();
    bench.linearity();
    bench.matmul_plain();
    bench.expand();
    bench.pack_step();
    bench.automorphism();
    bench.mod_switch();
    bench.automorphism_ntt();
    bench.gather();
    bench.base_convert();
    bench.modular_gemm();
    bench.expand_matrix();
    bench.matmul_matrix();
    if ring.moduli().len() > 1 {
        bench.key_switch();
        bench.rotate();
    }
    // Does not depend on the ring, but on every backend one of the rings has these.
    if ring.n() == 32 && ring.moduli().len() == 4 {
        bench.ring_gemm();
    }
    bench.wrong_shapes();
    bench.counters();
}

struct Bench<'a> {
    backend: &'a dyn Backend,
    ring: &'a Arc<RnsRing>,
    random: Random,
}

impl Bench<'_> {
    fn up(&self, words: &[u32]) -> Buffer {
        self.backend.upload(words).unwrap()
    }

    fn down(&self, buffer: &Buffer) -> Vec<u32> {
        let words = self.backend.download(buffer).unwrap();
        assert_eq!(words.len(), buffer.words());
        words
    }

    fn forward(&self, x: &Buffer, shape: Shape) -> Buffer {
        self.backend.ntt_forward(self.ring, x, shape).unwrap()
    }

    /// All limbs, and the first only.
    fn limb_counts(&self) -> Vec<usize> {
        let mut counts = vec![self.ring.moduli().len(), 1];
        counts.dedup();
        counts
    }

    /// Fails with the first difference, not with two dumps.
    fn same(&self, law: &str, found: &[u32], expected: &[u32]) {
        let n = self.ring.n();
        assert_eq!(found.len(), expected.len(), "{law}: length at N = {n}");
        if let Some(at) = (0..found.len()).find(|&i| found[i] != expected[i]) {
            panic!(
                "{law}: N = {n}, moduli {:?}, row {}, coefficient {}: found {}, expected {}",
                self.ring.moduli().iter().map(|m| m.value()).collect::<Vec<_>>(),
                at / n,
                at % n,
                found[at],
                expected[at]
            );
        }
    }

    fn transfers(&mut self) {
        for words in [vec![], vec![7], vec![0, u32::MAX, 1], self.random.batch(self.ring, Shape { polys: 3, limbs: 1 })]
        {
            let buffer = self.up(&words);
            self.same("download(upload(x)) = x", &self.down(&buffer), &words);
        }
    }

    fn ntt_is_evaluation_and_inverts(&mut self) {
        let n = self.ring.n();
        for limbs in self.limb_counts() {
            let shape = Shape { polys: 4, limbs };
            let x = self.random.batch(self.ring, shape);
            let buffer = self.up(&x);
            let there = self.forward(&buffer, shape);
            let values = self.down(&there);
            let points: Vec<usize> = if n <= DENSE {
                (0..n).collect()
            } else {
                [0, 1, n / 2, n - 1].into_iter().chain((0..8).map(|_| self.random.below(n))).collect()
            };
            for (row, (f, values)) in x.chunks(n).zip(values.chunks(n)).enumerate() {
                for &i in &points {
                    assert_eq!(values[i], evaluate(self.ring, row % limbs, f, i), "NTT: N = {n}, row {row}, index {i}");
                }
            }
            let back = self.backend.ntt_inverse(self.ring, &there, shape).unwrap();
            self.same("inverse(forward(x)) = x", &self.down(&back), &x);
            let inverse = self.backend.ntt_inverse(self.ring, &buffer, shape).unwrap();
            self.same("forward(inverse(x)) = x", &self.down(&self.forward(&inverse, shape)), &x);
            self.same("operations leave their input alone", &self.down(&buffer), &x);
        }
    }

    fn ntt_turns_products_into_convolutions(&mut self) {
        let (n, limbs) = (self.ring.n(), self.ring.moduli().len());
        let shape = Shape { polys: 4, limbs };
        let mut a = self.random.batch(self.ring, shape);
        if n > DENSE {
            self.sparsify(&mut a);
        }
        let b = self.random.uniform(self.ring, shape);
        let (fa, fb) = (self.forward(&self.up(&a), shape), self.forward(&self.up(&b), shape));
        let product = self.backend.mul(self.ring, &fa, &fb, shape).unwrap();
        let product = self.backend.ntt_inverse(self.ring, &product, shape).unwrap();
        let rows = a.chunks(n).zip(b.chunks(n)).enumerate();
        let expected = rows.flat_map(|(row, (a, b))| negacyclic(self.ring.moduli()[row % limbs], a, b));
        self.same("inverse(forward(a) forward(b)) = a b", &self.down(&product), &expected.collect::<Vec<_>>());
    }

    /// Keeps the ends and a few coefficients of every row.
    fn sparsify(&mut self, x: &mut [u32]) {
        let n = self.ring.n();
        for row in x.chunks_mut(n) {
            let keep: Vec<usize> = [0, n - 1].into_iter().chain((0..4).map(|_| self.random.below(n))).collect();
            row.iter_mut().enumerate().filter(|(i, _)| !keep.contains(i)).for_each(|(_, c)| *c = 0);
        }
    }

    fn pointwise(&mut self) {
        let n = self.ring.n();
        for limbs in self.limb_counts() {
            let shape = Shape { polys: 8, limbs };
            let a = self.random.batch(self.ring, shape);
            // The second operand's kinds of rows run against the first's in another order.
            let mut b = self.random.batch(self.ring, shape);
            b[..4 * limbs * n].rotate_left(limbs * n);
            let (da, db) = (self.up(&a), self.up(&b));
            let modulus = |i: usize| self.ring.moduli()[i / n % limbs];
            let with = |f: &dyn Fn(usize) -> u32| (0..a.len()).map(f).collect::<Vec<_>>();
            let (backend, ring) = (self.backend, self.ring);
            let accumulated = self.down(&backend.mul_accumulate(ring, &db, &da, &db, shape).unwrap());
            self.same("b + a * b", &accumulated, &with(&|i| modulus(i).add(b[i], modulus(i).mul(a[i], b[i]))));
            let sum = self.down(&backend.add(ring, &da, &db, shape).unwrap());
            self.same("a + b", &sum, &with(&|i| modulus(i).add(a[i], b[i])));
            let difference = self.down(&backend.sub(ring, &da, &db, shape).unwrap());
            self.same("a - b", &difference, &with(&|i| modulus(i).sub(a[i], b[i])));
            let product = self.down(&backend.mul(ring, &da, &db, shape).unwrap());
            self.same("a * b", &product, &with(&|i| modulus(i).mul(a[i], b[i])));
            let top: Vec<u32> = ring.moduli()[..limbs].iter().map(|m| m.value() - 1).collect();
            let any: Vec<u32> = ring.moduli()[..limbs].iter().map(|m| m.reduce(self.random.word())).collect();
            for scalars in [top, any, vec![0; limbs], vec![1; limbs]] {
                let scaled = self.down(&backend.mul_scalar(ring, &da, shape, &scalars).unwrap());
                self.same("s * a", &scaled, &with(&|i| modulus(i).mul(a[i], scalars[i / n % limbs])));
            }
        }
    }

    fn linearity(&mut self) {
        let limbs = self.ring.moduli().len();
        let shape = Shape { polys: 2, limbs };
        let (backend, ring) = (self.backend, self.ring);
        let (a, b) = (self.random.uniform(ring, shape), self.random.uniform(ring, shape));
        let (a, b) = (self.up(&a), self.up(&b));
        let scalars: Vec<u32> = ring.moduli().iter().map(|m| m.reduce(self.random.word())).collect();
        let combine = |a: &Buffer, b: &Buffer| {
            let scaled = backend.mul_scalar(ring, a, shape, &scalars).unwrap();
            backend.add(ring, &scaled, b, shape).unwrap()
        };
        let law = |name: &str, f: &dyn Fn(&Buffer) -> Buffer| {
            self.same(name, &self.down(&f(&combine(&a, &b))), &self.down(&combine(&f(&a), &f(&b))));
        };
        law("forward NTT is linear", &|x| backend.ntt_forward(ring, x, shape).unwrap());
        law("inverse NTT is linear", &|x| backend.ntt_inverse(ring, x, shape).unwrap());
        law("automorphism is linear", &|x| backend.automorphism(ring, x, shape, 5).unwrap());
    }

    fn matmul_plain(&mut self) {
        let (n, all) = (self.ring.n(), self.ring.moduli().len());
        let mut shapes = vec![
            // Sums of 40 products of 60 bits do not fit in 64.
            (MatmulShape { groups: 1, inputs: 40, outputs: 2, limbs: all.min(2) }, true),
            (MatmulShape { groups: 1, inputs: 17, outputs: 1, limbs: all }, true),
        ];
        for inputs in [1, 2, 3, 4, 12, 16, 23] {
            shapes.push((MatmulShape { groups: 2, inputs, outputs: 3, limbs: all }, false));
        }
        if n > DENSE {
            // Size does not change the arithmetic; two shapes try the layout.
            shapes.drain(1..6);
            shapes.truncate(2);
        }
        for (shape, worst) in shapes {
            let MatmulShape { groups, inputs, outputs, limbs } = shape;
            let modulus = |row: usize| self.ring.moduli()[row % limbs];
            let top = |rows: usize| (0..rows * n).map(|i| modulus(i / n).value() - 1).collect::<Vec<_>>();
            let (ct_rows, plain_rows) = (groups * inputs * 2 * limbs, groups * outputs * inputs * limbs);
            let (ct, plain) = if worst {
                (top(ct_rows), top(plain_rows))
            } else {
                let ct = self.random.batch(self.ring, Shape { polys: groups * inputs * 2, limbs });
                (ct, self.random.uniform(self.ring, Shape { polys: groups * outputs * inputs, limbs }))
            };
            let found = self.backend.matmul_plain(self.ring, &self.up(&ct), &self.up(&plain), shape).unwrap();
            let mut expected = Vec::new();
            for group in 0..groups {
                for output in 0..outputs {
                    for part in 0..2 {
                        for limb in 0..limbs {
                            let p = modulus(limb).value() as u128;
                            expected.extend((0..n).map(|k| {
                                let sum: u128 = (0..inputs)
                                    .map(|input| {
                                        let c = ct[(((group * inputs + input) * 2 + part) * limbs + limb) * n + k];
                                        let w = (group * outputs + output) * inputs + input;
                                        c as u128 * plain[(w * limbs + limb) * n + k] as u128
                                    })
                                    .sum();
                                (sum % p) as u32
                            }));
                        }
                    }
                }
            }
            self.same(&format!("matmul_plain {shape:?}"), &self.down(&found), &expected);
        }
    }

    fn expand(&mut self) {
        let n = self.ring.n();
        let every: Vec<u32> = (0..n as u32).collect();
        let spread: Vec<u32> = (0..n as u32).rev().step_by(8).collect();
        for positions in [vec![0], vec![n as u32 - 1, 0], spread, every] {
            for limbs in self.limb_counts() {
                let polys = 3;
                let edges = [0, 1, -1, 2047, -2048, i64::from(i32::MAX), i64::from(i32::MIN), i64::MAX, i64::MIN];
                let values: Vec<i64> = (0..polys * positions.len())
                    .map(|i| match self.random.below(2) {
                        0 => edges[i % edges.len()],
                        _ => self.random.word() as i64 >> self.random.below(60),
                    })
                    .collect();
                let found = self.backend.expand(self.ring, limbs, &values, &positions).unwrap();
                let mut expected = vec![0; polys * limbs * n];
                for (k, values) in values.chunks(positions.len()).enumerate() {
                    for limb in 0..limbs {
                        for (&value, &at) in values.iter().zip(&positions) {
                            let p = self.ring.moduli()[limb].value() as i128;
                            let residue = (value as i128).rem_euclid(p) as u32;
                            expected[(k * limbs + limb) * n + at as usize] = residue;
                        }
                    }
                }
                self.same("expand", &self.down(&found), &expected);
            }
        }
    }

    fn pack_step(&mut self) {
        let n = self.ring.n();
        for limbs in self.limb_counts() {
            for (half, parts, by) in [(1, 1, 0), (1, 2, 1), (3, 2, n / 4), (2, 1, n / 2 + 1), (2, 2, n - 1)] {
                let shape = Shape { polys: 2 * half * parts, limbs };
                let x = self.random.batch(self.ring, shape);
                let (sum, difference) = self.backend.pack_step(self.ring, &self.up(&x), shape, by).unwrap();
                let (even, odd) = x.split_at(x.len() / 2);
                let modulus = |row: usize| self.ring.moduli()[row % limbs];
                let odd: Vec<u32> =
                    odd.chunks(n).enumerate().flat_map(|(row, odd)| shift(modulus(row), odd, by)).collect();
                let expected = |f: &dyn Fn(usize) -> u32| (0..even.len()).map(f).collect::<Vec<_>>();
                let law = format!("pack_step: {half} pairs of {parts} parts, shift {by}");
                self.same(&law, &self.down(&sum), &expected(&|i| modulus(i / n).add(even[i], odd[i])));
                self.same(&law, &self.down(&difference), &expected(&|i| modulus(i / n).sub(even[i], odd[i])));
            }
        }
    }

    fn automorphism(&mut self) {
        let (n, limbs) = (self.ring.n(), self.ring.moduli().len());
        let (backend, ring) = (self.backend, self.ring);
        let shape = Shape { polys: 3, limbs };
        let a = self.random.batch(ring, shape);
        let b = self.random.uniform(ring, shape);
        let (da, db) = (self.up(&a), self.up(&b));
        let sigma = |x: &Buffer, g: usize| backend.automorphism(ring, x, shape, g).unwrap();
        self.same("X -> X changes nothing", &self.down(&sigma(&da, 1)), &a);
        for g in [3, 5, n - 1, n + 1, 2 * n - 1, self.random.below(n) * 2 + 1] {
            let expected = a.chunks(n).enumerate().flat_map(|(row, f)| substitute(ring.moduli()[row % limbs], f, g));
            self.same(&format!("f(X^{g})"), &self.down(&sigma(&da, g)), &expected.collect::<Vec<_>>());

            let h = self.random.below(n) * 2 + 1;
            let composed = sigma(&sigma(&da, g), h);
            self.same("automorphisms compose", &self.down(&composed), &self.down(&sigma(&da, g * h % (2 * n))));

            let times = |a: &Buffer, b: &Buffer| {
                let product = backend.mul(ring, &self.forward(a, shape), &self.forward(b, shape), shape).unwrap();
                backend.ntt_inverse(ring, &product, shape).unwrap()
            };
            let outside = self.down(&sigma(&times(&da, &db), g));
            self.same(
                "an automorphism respects products",
                &outside,
                &self.down(&times(&sigma(&da, g), &sigma(&db, g))),
            );
        }
    }

    fn mod_switch(&mut self) {
        let (n, all) = (self.ring.n(), self.ring.moduli().len());
        for limbs in 1..=all {
            if n > DENSE && limbs != all {
                continue;
            }
            let shape = Shape { polys: 3, limbs };
            let x = self.random.batch(self.ring, shape);
            let buffer = self.up(&x);
            for target in 1..=limbs {
                let found = self.down(&self.backend.mod_switch(self.ring, &buffer, shape, target).unwrap());
                let mut expected = vec![0; shape.polys * target * n];
                for poly in 0..shape.polys {
                    // Bigint work on every coefficient of small rings, on some of large ones.
                    let step = if n <= DENSE { 1 } else { 37 };
                    for k in 0..n {
                        if k % step != 0 {
                            for limb in 0..target {
                                let at = (poly * target + limb) * n + k;
                                expected[at] = found[at];
                            }
                            continue;
                        }
                        let residues: Vec<u32> = (0..limbs).map(|limb| x[(poly * limbs + limb) * n + k]).collect();
                        let mut value = BigInt::from(reconstruct(self.ring, &residues));
                        for dropped in (target..limbs).rev() {
                            value = divide_rounding(&value, self.ring.moduli()[dropped].value());
                        }
                        for limb in 0..target {
                            expected[(poly * target + limb) * n + k] = residue(self.ring.moduli()[limb], &value);
                        }
                    }
                }
                self.same(&format!("mod_switch from {limbs} to {target}"), &found, &expected);
            }
        }
    }

    fn wrong_shapes(&mut self) {
        let (n, all) = (self.ring.n(), self.ring.moduli().len());
        let (backend, ring) = (self.backend, self.ring);
        let good = Shape { polys: 2, limbs: all };
        let x = self.random.uniform(ring, good);
        let x = self.up(&x);
        let short = self.up(&vec![0; x.words() - 1]);
        let refused = |name: &str, result: Result<(), EngineError>| match result {
            Err(EngineError::Shape { operation, .. }) => assert_eq!(operation, name),
            other => panic!("{name}: expected a shape error at N = {n}, found {other:?}"),
        };
        let bad = [
            (&short, good),
            (&x, Shape { polys: 3, limbs: all }),
            (&x, Shape { polys: 1, limbs: all }),
            (&x, Shape { polys: 2, limbs: 0 }),
            (&x, Shape { polys: 2, limbs: all + 1 }),
            (&x, Shape { polys: usize::MAX, limbs: all }),
        ];
        for (x, shape) in bad {
            refused("ntt_forward", backend.ntt_forward(ring, x, shape).map(drop));
            refused("ntt_inverse", backend.ntt_inverse(ring, x, shape).map(drop));
            refused("add", backend.add(ring, x, x, shape).map(drop));
            refused("sub", backend.sub(ring, x, x, shape).map(drop));
            refused("mul", backend.mul(ring, x, x, shape).map(drop));
            refused("mul_scalar", backend.mul_scalar(ring, x, shape, &vec![0; shape.limbs.min(99)]).map(drop));
            refused("pack_step", backend.pack_step(ring, x, shape, 1).map(drop));
            refused("mul_accumulate", backend.mul_accumulate(ring, x, x, x, shape).map(drop));
            refused("automorphism", backend.automorphism(ring, x, shape, 3).map(drop));
            refused("automorphism_ntt", backend.automorphism_ntt(ring, x, shape, 3).map(drop));
            refused("mod_switch", backend.mod_switch(ring, x, shape, 1).map(drop));
        }
        for (a, b) in [(&x, &short), (&short, &x)] {
            refused("add", backend.add(ring, a, b, good).map(drop));
            refused("sub", backend.sub(ring, a, b, good).map(drop));
            refused("mul", backend.mul(ring, a, b, good).map(drop));
        }
        refused("mul_scalar", backend.mul_scalar(ring, &x, good, &vec![0; all + 1]).map(drop));
        let large: Vec<u32> = ring.moduli().iter().map(|m| m.value()).collect();
        refused("mul_scalar", backend.mul_scalar(ring, &x, good, &large).map(drop));
        refused("pack_step", backend.pack_step(ring, &x, good, n).map(drop));
        let odd = Shape { polys: 1, limbs: all };
        refused("pack_step", backend.pack_step(ring, &self.up(&vec![0; all * n]), odd, 1).map(drop));
        for g in [0, 2, 2 * n, 2 * n + 1] {
            refused("automorphism", backend.automorphism(ring, &x, good, g).map(drop));
            refused("automorphism_ntt", backend.automorphism_ntt(ring, &x, good, g).map(drop));
        }
        for target in [0, all + 1] {
            refused("mod_switch", backend.mod_switch(ring, &x, good, target).map(drop));
        }
        for (limbs, values, positions) in [
            (all, vec![1, 2, 3], vec![0, 1]),
            (all, vec![1, 2], vec![0, 0]),
            (all, vec![1], vec![n as u32]),
            (all, vec![], vec![]),
            (0, vec![1], vec![0]),
            (all + 1, vec![1], vec![0]),
        ] {
            refused("expand", backend.expand(ring, limbs, &values, &positions).map(drop));
        }
        let shape = MatmulShape { groups: 1, inputs: 1, outputs: 2, limbs: all };
        let plain = &x;
        assert!(backend.matmul_plain(ring, &x, plain, shape).is_ok());
        for shape in [
            MatmulShape { outputs: 1, ..shape },
            MatmulShape { inputs: 2, ..shape },
            MatmulShape { inputs: 0, ..shape },
            MatmulShape { groups: 2, ..shape },
            MatmulShape { limbs: all + 1, ..shape },
            MatmulShape { groups: usize::MAX, ..shape },
        ] {
            refused("matmul_plain", backend.matmul_plain(ring, &x, plain, shape).map(drop));
        }
        refused("matmul_plain", backend.matmul_plain(ring, &short, plain, shape).map(drop));
        refused("matmul_plain", backend.matmul_plain(ring, &x, &short, shape).map(drop));
        self.wrong_key_switches();
        self.wrong_gathers();
        self.wrong_conversions();
        self.wrong_gemms();
    }

    fn counters(&self) {
        let ops = self.backend.ops();
        for name in [
            "upload",
            "download",
            "ntt_forward",
            "ntt_inverse",
            "add",
            "sub",
            "mul",
            "mul_accumulate",
            "mul_scalar",
            "matmul_plain",
            "expand",
            "pack_step",
            "automorphism",
            "automorphism_ntt",
            "gather",
            "base_convert",
            "modular_gemm",
            "expand_matrix",
            "key_switch",
            "rotate",
            "mod_switch",
        ] {
            if self.ring.moduli().len() == 1 && ["key_switch", "rotate"].contains(&name) {
                continue;
            }
            let count = ops.iter().find(|op| op.name == name);
            assert!(count.is_some_and(|c| c.cpu + c.gpu > 0), "{name} is not counted");
        }
    }
}
