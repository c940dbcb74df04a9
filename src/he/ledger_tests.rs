//! Every step of the noise ledger against the noise measured with the secret key.

use std::sync::Arc;

use num_bigint::BigInt;

use super::{BfvContext, HeClient, HeServer, MATMUL_8192, NoiseBound, ParameterSet};
use crate::{
    arith::{
        ShareModulus,
        crt::CrtBasis,
        sample::{self, SecureRng},
    },
    engine::{Buffer, MatmulShape, Poly, Shape, cpu::CpuBackend},
};

const BLOCK: usize = 8;

struct Bench {
    client: HeClient,
    server: HeServer,
    rng: SecureRng,
    t: ShareModulus,
}

/// Noise of a batch of ciphertexts, in units of 1 modulo q.
#[derive(Debug)]
struct Noise {
    max: f64,
    deviation: f64,
}

impl Noise {
    /// The bound holds, and is not a bound of something else: it is within a few bits of what is there.
    fn obeys(&self, bound: &NoiseBound) {
        assert!(self.max < bound.bound(), "{self:?} exceeds {bound:?}");
        assert!(self.max > bound.bound() / 32.0, "{self:?} is far below {bound:?}");
    }
}

impl Bench {
    fn new(bits: u32) -> Self {
        let params = ParameterSet::new(MATMUL_8192).unwrap();
        let ctx = BfvContext::new(Arc::new(CpuBackend::new(None)), params);
        let mut rng = SecureRng::from_os().unwrap();
        let client = HeClient::generate(ctx.clone(), &mut rng);
        let public = client.public_key(&mut rng).unwrap();
        let galois = client.galois_keys(BLOCK, &mut rng).unwrap();
        let server = HeServer::new(ctx, &public, Some(&galois)).unwrap();
        Self { client, server, rng, t: ShareModulus::pow2(bits).unwrap() }
    }

    fn params(&self) -> &ParameterSet {
        self.client.context().params()
    }

    fn download(&self, x: &Buffer) -> Vec<u32> {
        self.client.context().backend().download(x).unwrap()
    }

    /// Fresh uniform messages `[count][N]` and their ciphertexts, NTT domain.
    fn fresh(&mut self, count: usize) -> (Vec<u64>, Buffer) {
        let mut m = vec![0; count * self.params().n()];
        sample::uniform_ring(&mut self.rng, self.t, &mut m);
        let ct = self.client.encrypt(self.t, &m, &mut self.rng).unwrap();
        let words = ct.expand(self.params()).unwrap();
        (m, self.client.context().backend().upload(&words).unwrap())
    }

    /// Noise of ciphertexts `[count][2][limbs][N]` in the coefficient domain, modulo the first `limbs` primes, at the
    /// coefficients whose message `expected` knows.
    fn noise(&self, limbs: usize, words: &[u32], expected: impl Fn(usize) -> Option<u64>) -> Noise {
        let (params, backend) = (self.params(), self.client.context().backend());
        let n = params.n();
        let moduli = &params.data().moduli()[..limbs];
        let q: BigInt = moduli.iter().map(|p| BigInt::from(p.value())).product();
        let modulus: BigInt = &q << self.t.bits();
        let basis = CrtBasis::new(moduli);
        let cofactor = moduli.iter().zip(basis.cofactor_inverse());
        let lifts: Vec<BigInt> = cofactor.map(|(p, &inverse)| &q / p.value() * inverse).collect();
        let shape = Shape { polys: 1, limbs };
        let (mut max, mut square, mut count) = (0f64, 0f64, 0);
        for (k, ct) in words.chunks(2 * limbs * n).enumerate() {
            let c1 = backend.upload(&ct[limbs * n..]).unwrap();
            let mut x = self.download(&backend.ntt_forward(params.ring(), &c1, shape).unwrap());
            for (i, x) in x.iter_mut().enumerate() {
                *x = moduli[i / n].mul(*x, self.client.secret().limb(params, i / n)[i % n]);
            }
            let x = backend.upload(&x).unwrap();
            let x = self.download(&backend.ntt_inverse(params.ring(), &x, shape).unwrap());
            for i in 0..n {
                let Some(m) = expected(k * n + i) else { continue };
                let residue = |limb: usize| moduli[limb].add(ct[limb * n + i], x[limb * n + i]);
                let phase = (0..limbs).map(|limb| &lifts[limb] * residue(limb)).sum::<BigInt>();
                // t * noise = t * phase - q * m, centred modulo q t.
                let half: BigInt = &modulus >> 1;
                let difference: BigInt = (phase << self.t.bits()) - &q * m + &half;
                let difference = ((difference % &modulus) + &modulus) % &modulus - half;
                let noise = difference.to_string().parse::<f64>().unwrap() / (self.t.bits() as f64).exp2();
                max = max.max(noise.abs());
                square += noise * noise;
                count += 1;
            }
        }
        Noise { max, deviation: (square / count as f64).sqrt() }
    }
}

/// `inputs` ciphertexts times weights at exponents `0..stride`: the products (NTT domain) and their messages.
fn product(bench: &mut Bench, inputs: usize, outputs: usize, stride: usize, magnitude: i64) -> (Vec<u64>, Buffer) {
    let (m, ct) = bench.fresh(inputs);
    let (n, limbs, t) = (bench.params().n(), bench.params().limbs(), bench.t);
    let mut random = vec![0; outputs * inputs * stride];
    sample::uniform_ring(&mut bench.rng, ShareModulus::pow2(63).unwrap(), &mut random);
    // None is zero: products of nothing but zeros have no noise.
    let values: Vec<i64> =
        random.iter().map(|&x| (x as i64 % magnitude + 1) * if x >> 62 == 0 { 1 } else { -1 }).collect();
    let mut expected = vec![0u64; outputs * n];
    for (k, &w) in values.iter().enumerate() {
        let (o, i, shift) = (k / stride / inputs, k / stride % inputs, k % stride);
        for at in 0..n {
            let x = t.mul(m[i * n + at], t.from_signed(w));
            let (to, x) = if at + shift < n { (at + shift, x) } else { (at + shift - n, t.sub(0, x)) };
            expected[o * n + to] = t.add(expected[o * n + to], x);
        }
    }
    let shape = MatmulShape { groups: 1, inputs, outputs, limbs };
    let product = bench.server.multiply(&ct, &values, stride, shape).unwrap();
    (expected, product)
}

fn coefficients(bench: &Bench, x: &Buffer, count: usize) -> Vec<u32> {
    let shape = Shape { polys: 2 * count, limbs: bench.params().limbs() };
    bench.download(&bench.client.context().ntt_inverse(x, shape).unwrap())
}

#[test]
fn fresh_and_products() {
    for (bits, magnitude) in [(32, 2047), (64, 32767), (48, 1 << 47)] {
        let mut bench = Bench::new(bits);
        let limbs = bench.params().limbs();
        let (m, ct) = bench.fresh(2);
        let noise = bench.noise(limbs, &coefficients(&bench, &ct, 2), |i| Some(m[i]));
        noise.obeys(&NoiseBound::fresh());
        assert!((noise.deviation / NoiseBound::fresh().variance.sqrt() - 1.0).abs() < 0.05);

        let (expected, x) = product(&mut bench, 6, 1, 8, magnitude);
        let noise = bench.noise(limbs, &coefficients(&bench, &x, 1), |i| Some(expected[i]));
        noise.obeys(&NoiseBound::fresh().weighted_sum(48.0, magnitude as f64));
    }
}

#[test]
fn output_packing_and_key_switches() {
    let mut bench = Bench::new(32);
    let (n, limbs) = (bench.params().n(), bench.params().limbs());
    for outputs in [2, BLOCK] {
        // Beside weights of 1 the noise of the key switches stands out.
        for magnitude in [1, 2047] {
            let (expected, x) = product(&mut bench, 2, outputs, 1, magnitude);
            let packed = bench.server.pack_outputs(&x, outputs, 1, BLOCK).unwrap();
            let noise = bench.noise(limbs, &bench.download(&packed), |i| {
                let output = i % BLOCK / (BLOCK / outputs);
                i.is_multiple_of(BLOCK / outputs).then(|| expected[output * n + i / BLOCK * BLOCK])
            });
            let own = NoiseBound::fresh().weighted_sum(2.0, magnitude as f64);
            noise.obeys(&own.packed(bench.params(), outputs));
        }
    }
}

#[test]
fn products_of_turned_inputs() {
    let mut bench = Bench::new(32);
    let (n, limbs, t) = (bench.params().n(), bench.params().limbs(), bench.t);
    let elements: Vec<usize> = bench.server.elements().to_vec();
    let (inputs, stride, magnitude) = (3, 16, 2047);
    let turns = elements.len() + 1;
    let (m, ct) = bench.fresh(inputs);
    let context = bench.client.context().clone();
    let shape = Shape { polys: 2 * inputs, limbs };
    let words = context.ntt_inverse(&ct, shape).unwrap();
    let x = Poly::from_buffer(&context.engine(), context.ring(), limbs, words).unwrap();
    let rotations: Vec<_> = (0..inputs).flat_map(|k| elements.iter().map(move |&g| (k, g))).collect();
    let turned = bench.server.rotate(&x, &rotations).unwrap();
    let turned = context.ntt_forward(turned.buffer(), Shape { polys: 2 * rotations.len(), limbs }).unwrap();
    let words: Vec<u32> = [bench.download(&ct), bench.download(&turned)].concat();
    let all = context.backend().upload(&words).unwrap();

    let mut random = vec![0; inputs * turns * stride];
    sample::uniform_ring(&mut bench.rng, ShareModulus::pow2(63).unwrap(), &mut random);
    // Of both signs, then of one: the digits' mean adds up.
    for one_sign in [false, true] {
        let value = |x: u64| (x % magnitude) as i64 * if one_sign || x >> 62 == 0 { 1 } else { -1 };
        let values: Vec<i64> = random.iter().map(|&x| value(x)).collect();
        let mut expected = vec![0u64; n];
        for (k, values) in values.chunks(stride).enumerate() {
            let (input, g) = if k < inputs { (k, 1) } else { rotations[k - inputs] };
            for (i, &m) in m[input * n..][..n].iter().enumerate() {
                for (j, &w) in values.iter().enumerate() {
                    let e = (i * g + j) % (2 * n);
                    let x = t.mul(m, t.from_signed(if e < n { w } else { -w }));
                    expected[e % n] = t.add(expected[e % n], x);
                }
            }
        }
        let shape = MatmulShape { groups: 1, inputs: inputs * turns, outputs: 1, limbs };
        let product = bench.server.multiply(&all, &values, stride, shape).unwrap();
        let noise = bench.noise(limbs, &coefficients(&bench, &product, 1), |i| Some(expected[i]));
        let (terms, magnitude) = ((inputs * stride) as f64, magnitude as f64);
        let sum = terms * magnitude;
        let square = if one_sign { sum * sum } else { terms * magnitude * magnitude };
        let own = NoiseBound::fresh().weighted_sum(terms * turns as f64, magnitude);
        let bound = own.plus(&NoiseBound::turned_products(bench.params(), turns as f64, sum, square));
        if one_sign {
            // The worst case has the signs follow those that the automorphism gives to the digits.
            assert!(noise.max < bound.bound(), "{noise:?} exceeds {bound:?}");
        } else {
            noise.obeys(&bound);
        }
    }
}

#[test]
fn blinding_switching_and_truncation() {
    for (bits, magnitude) in [(20, 2047), (32, 2047), (48, 1 << 47), (64, 2047)] {
        let mut bench = Bench::new(bits);
        let (t, limbs, n) = (bench.t, bench.params().limbs(), bench.params().n());
        let (expected, x) = product(&mut bench, 4, 1, 16, magnitude);
        let packed = bench.server.pack_outputs(&x, 1, 1, BLOCK).unwrap();
        let own = NoiseBound::fresh().weighted_sum(64.0, magnitude as f64);
        let plan = bench.params().check(t, &own).unwrap();
        assert_eq!(plan.own, own.rerandomised(bench.params()));

        // The encryption of zero alone, where the product's noise does not cover it: packs of nothing.
        let nothing = bench.client.context().backend().upload(&vec![0; 2 * limbs * n]).unwrap();
        let (zero, mask) = bench.server.blind(t, 1.0, &nothing, 1, &mut bench.rng).unwrap();
        let noise = bench.noise(limbs, &bench.download(&zero), |i| Some(t.sub(0, mask[i])));
        noise.obeys(&NoiseBound::zero().rerandomised(bench.params()));

        let (blinded, mask) = bench.server.blind(t, plan.flood_deviation, &packed, 1, &mut bench.rng).unwrap();
        let message = |i: usize| Some(t.sub(expected[i], mask[i]));
        let noise = bench.noise(limbs, &bench.download(&blinded), message);
        noise.obeys(&plan.own.flooded());
        assert!((noise.deviation / plan.flood_deviation - 1.0).abs() < 0.04, "{noise:?} {plan:?}");
        assert_eq!(plan.flood_deviation, plan.own.bound() * 2f64.powi(40));

        let context = bench.client.context();
        let shape = Shape { polys: 2, limbs };
        let switched = context.backend().mod_switch(context.ring(), &blinded, shape, plan.limbs).unwrap();
        let mut words = bench.download(&switched);
        let basis = CrtBasis::new(&bench.params().data().moduli()[..plan.limbs]);
        let dropped = bench.params().data().log2() - basis.log2();
        let noise = bench.noise(plan.limbs, &words, message);
        noise.obeys(&plan.own.flooded().switched(n, dropped));

        for (part, cut) in words.chunks_mut(plan.limbs * n).zip([plan.c0, plan.c1]) {
            for i in 0..n {
                let x = cut.restore(cut.cut(basis.lift(|limb| part[limb * n + i])));
                for (limb, p) in basis.moduli().iter().enumerate() {
                    part[limb * n + i] = (x % p.value() as u128) as u32;
                }
            }
        }
        assert!(plan.c0.kept_bits <= bits + 3 && plan.c1.kept_bits <= bits + 14, "{plan:?}");
        let noise = bench.noise(plan.limbs, &words, message);
        noise.obeys(&plan.received);
        assert!(plan.received.log2() < basis.log2() - bits as f64 - 1.0);
        // The flooding hides the noise to far below one inference in a million.
        assert!(plan.statistical_distance_log2(1) < -36.0 && plan.statistical_distance_log2(1 << 10) < -31.0);
    }
}

#[test]
fn the_secret_key_has_no_wire_form() {
    // Each call is ambiguous, and this file does not compile, if the type has the trait.
    trait Without<Marker> {
        fn check() {}
    }
    impl<T> Without<()> for T {}
    macro_rules! without {
        ($($name:ident: $bound:path),*) => {$({
            struct $name;
            impl<T: $bound> Without<$name> for T {}
            <super::SecretKey as Without<_>>::check();
        })*};
    }
    without!(A: serde::Serialize, B: std::fmt::Debug, C: Clone, D: AsRef<[u8]>, E: Into<Vec<u8>>, F: std::fmt::Display);

    // And nothing that is sent contains it: neither the integers nor any limb of its transform.
    let mut bench = Bench::new(32);
    let params = bench.params().clone();
    let n = params.n();
    let m = vec![0; 2 * n];
    let mut sent = bench.client.public_key(&mut bench.rng).unwrap().to_bytes(&params);
    sent.extend(bench.client.galois_keys(BLOCK, &mut bench.rng).unwrap().to_bytes(&params));
    sent.extend(bench.client.encrypt(bench.t, &m, &mut bench.rng).unwrap().to_bytes(&params));
    let secret = bench.client.secret();
    for needle in secret.forms(&params) {
        for at in [0, needle.len() / 2] {
            let needle = &needle[at..at + 24];
            assert!(!sent.windows(24).any(|window| window == needle));
        }
    }
}
