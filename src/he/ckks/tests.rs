//! Every operation against arithmetic on the slots, within the ledger's bound, on the CPU and on both sides of a dual backend.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::{
    arith::sample::SecureRng,
    engine::{
        Backend, DualBackend,
        cpu::CpuBackend,
        gpu::{GpuBackend, GpuOptions, adapters},
    },
    he::{HeError, ParameterSet, ParameterSpec},
};

/// Small rings: what they compute does not depend on their security.
const SMALL: ParameterSpec = ParameterSpec { name: "small", n: 64, prime_bits: 30, data_limbs: 6, special_limbs: 1 };

struct Parties {
    client: CkksClient,
    server: CkksServer,
    rng: SecureRng,
}

fn parties(backend: Arc<dyn Backend>, spec: ParameterSpec, seed: u8) -> Parties {
    let ctx = CkksContext::new(backend, ParameterSet::insecure(spec).unwrap());
    let mut rng = SecureRng::from_seed([seed; 32]);
    let client = CkksClient::generate(ctx.clone(), &mut rng);
    let n = spec.n;
    let elements =
        [rotation_element(n, 1), rotation_element(n, 5), rotation_element(n, n / 2 - 3), conjugation_element(n)];
    let keys = client.keys_for_elements(&elements, &mut rng).unwrap();
    let server = CkksServer::new(ctx, &keys).unwrap();
    Parties { client, server, rng }
}

fn cpu() -> Arc<dyn Backend> {
    Arc::new(CpuBackend::new(None))
}

impl Parties {
    fn fresh(&mut self, slots: &[f64], limbs: usize, magnitude: f64) -> CkksCiphertexts {
        let form = self.server.context().fresh(limbs, magnitude);
        let sent = self.client.encrypt(slots, form, &mut self.rng).unwrap();
        let params = self.client.context().params().at_level(limbs).unwrap();
        let received = crate::he::SeededCiphertexts::from_bytes(&params, sent.len(), &sent.to_bytes(&params)).unwrap();
        self.server.load(&received, form).unwrap()
    }

    fn open(&mut self, x: &CkksCiphertexts) -> Vec<f64> {
        let params = self.client.context().params().clone();
        let limbs = x.limbs().min(3);
        let response = self.server.respond(x, limbs, &mut self.rng).unwrap();
        let bytes = response.to_bytes(&params);
        assert_eq!(Some(bytes.len()), CkksResponse::byte_len(&params, x.len(), limbs));
        let response = CkksResponse::from_bytes(&params, x.len(), limbs, &bytes).unwrap();
        self.client.decrypt(&response).unwrap().to_vec()
    }

    /// The slots are the expected ones within the ledger's bound, and the bound is not idle.
    fn check(&mut self, x: &CkksCiphertexts, expected: impl Fn(usize, usize) -> f64) {
        let slots = self.server.context().slots();
        let n = 2 * slots;
        let bound = x.ledger().rerandomised(n).error;
        let found = self.open(x);
        assert_eq!(found.len(), x.len() * slots);
        for (i, found) in found.iter().enumerate() {
            let expected = expected(i / slots, i % slots);
            assert!((found - expected).abs() <= bound, "slot {i}: {found} is not {expected} within {bound:e}");
            assert!(expected.abs() <= x.ledger().magnitude * (1.0 + 1e-12), "slot {i}: {expected} above the bound");
        }
        assert!(bound < 0.02 * x.ledger().magnitude.max(1.0), "the bound {bound} says nothing");
    }
}

fn values(count: usize, seed: u64, magnitude: f64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64 * 2.0 - 1.0
    };
    (0..count).map(|_| next() * magnitude).collect()
}

/// One run through all operations.
fn circuit(p: &mut Parties, seed: u64) {
    let ctx = p.server.context().clone();
    let (s, limbs) = (ctx.slots(), ctx.params().key_limbs());
    let (a, b) = (values(2 * s, seed, 3.0), values(2 * s, seed + 1, 2.0));
    let (x, y) = (p.fresh(&a, limbs, 3.0), p.fresh(&b, limbs, 2.0));
    p.check(&x, |k, j| a[k * s + j]);
    let sum = p.server.add(&x, &y).unwrap();
    p.check(&sum, |k, j| a[k * s + j] + b[k * s + j]);
    let difference = p.server.sub(&x, &p.server.drop_to(&y, 3).unwrap()).unwrap();
    assert_eq!(difference.limbs(), 3);
    p.check(&difference, |k, j| a[k * s + j] - b[k * s + j]);

    let product = p.server.multiply(&x, &y).unwrap();
    assert!(product.parts() == 3 && p.server.rotate(&product, &[(0, 1)]).is_err());
    let product = p.server.rescale(&p.server.relinearise(&product).unwrap()).unwrap();
    p.check(&product, |k, j| a[k * s + j] * b[k * s + j]);
    let cube = p.server.rescale(&p.server.relinearise(&p.server.multiply(&product, &x).unwrap()).unwrap()).unwrap();
    p.check(&cube, |k, j| a[k * s + j].powi(2) * b[k * s + j]);

    let turned = p.server.rotate(&x, &[(1, 5), (0, s - 3), (1, 1)]).unwrap();
    p.check(&turned, |r, j| [a[s + (j + 5) % s], a[(j + s - 3) % s], a[s + (j + 1) % s]][r]);
    let same = p.server.automorphisms(&x, &[(0, conjugation_element(2 * s))]).unwrap();
    p.check(&same, |_, j| a[j]);

    let weights = values(6 * s, seed + 2, 1.5);
    let prime = ctx.prime(limbs);
    let plain = p.server.encode(limbs, prime, (3, 2), |o, i| weights[(2 * o + i) * s..][..s].to_vec()).unwrap();
    let linear = p.server.rescale(&p.server.multiply_plain(&x, &plain).unwrap()).unwrap();
    assert_eq!(linear.ledger().scale, ctx.scale());
    let linear = p.server.add_plain(&linear, |o| vec![o as f64 - 1.0; s]).unwrap();
    p.check(&linear, |o, j| (0..2).map(|i| a[i * s + j] * weights[(2 * o + i) * s + j]).sum::<f64>() + o as f64 - 1.0);
    let scaled = p.server.scale_slots(&x, prime, |k| weights[k * s..][..s].to_vec()).unwrap();
    p.check(&p.server.rescale(&scaled).unwrap(), |k, j| a[k * s + j] * weights[k * s + j]);

    // Two outputs of two terms; the second factors are x, y, y, x.
    let many = p.server.concat(&[&x, &y]).unwrap();
    let many = p.server.select(&many, &[0, 1, 2, 3, 2, 3, 0, 1]).unwrap();
    let sums = p.server.multiply_sums(
        &p.server.select(&x, &[0, 1]).unwrap(),
        &p.server.select(&many, &[0, 3, 5, 6]).unwrap(),
        1,
        2,
    );
    let sums = p.server.rescale(&p.server.relinearise(&sums.unwrap()).unwrap()).unwrap();
    p.check(&sums, |o, j| if o == 0 { a[j] * a[j] + a[s + j] * b[s + j] } else { a[j] * b[s + j] + a[s + j] * a[j] });

    // A mask that was added as integers goes away.
    let mask: Vec<i128> = (0..2 * s as i128).map(|k| (k - s as i128) << 75).collect();
    let message = ctx.encoder().encode(&a[..s], ctx.scale()).unwrap();
    let masked: Vec<i128> = message.iter().zip(&mask).map(|(&m, &r)| i128::from(m) + r).collect();
    let form = Fresh { limbs, scale: ctx.scale(), magnitude: 2f64.powi(90) };
    let sent = p.client.encrypt_integers(&masked, form, &mut p.rng).unwrap();
    let bare = p.server.sub_integers(&p.server.load(&sent, form).unwrap(), &mask, 3.0).unwrap();
    p.check(&bare, |_, j| a[j]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn operations_are_those_of_the_slots_within_the_bound(seed in 1u64..1 << 40) {
        circuit(&mut parties(cpu(), SMALL, seed as u8), seed);
    }
}

#[test]
fn digits_of_several_limbs_and_named_sets() {
    for (special_limbs, data_limbs) in [(2, 6), (2, 5), (3, 7)] {
        let spec = ParameterSpec { special_limbs, data_limbs, n: 128, ..SMALL };
        circuit(&mut parties(cpu(), spec, 5), 7);
    }
    circuit(&mut parties(cpu(), CKKS_8192, 6), 11);
}

/// The same under the dual backend: every word of every operation on the GPU (or its software) equals the CPU's.
#[test]
fn the_device_agrees_word_for_word() {
    assert!(!adapters().is_empty(), "no Vulkan adapter: install mesa-vulkan-drivers and libvulkan1");
    let gpu = GpuBackend::open(0, &GpuOptions::default()).unwrap();
    let backend: Arc<dyn Backend> = Arc::new(DualBackend::new(gpu, CpuBackend::new(None)));
    circuit(&mut parties(backend.clone(), ParameterSpec { n: 256, ..SMALL }, 8), 3);
    circuit(&mut parties(backend.clone(), ParameterSpec { special_limbs: 2, ..SMALL }, 9), 4);
    assert!(backend.ops().iter().any(|op| op.name == "rotate" && op.compared > 0));
}

#[test]
fn wrong_use_is_refused() {
    let mut p = parties(cpu(), SMALL, 1);
    let ctx = p.server.context().clone();
    let x = p.fresh(&[1.0, 2.0], 3, 2.0);
    let e = p.server.rotate(&x, &[(0, 2)]).unwrap_err();
    assert!(matches!(e, HeError::MissingRotationKey { .. }), "{e}");
    let squared = |x: &CkksCiphertexts| -> crate::he::Result<CkksCiphertexts> {
        p.server.rescale(&p.server.relinearise(&p.server.multiply(x, x)?)?)
    };
    let once = squared(&x).unwrap();
    let e = squared(&once).and_then(|x| squared(&x)).unwrap_err();
    assert!(matches!(e, HeError::DepthExhausted { .. }) && e.to_string().contains("depth"), "{e}");
    let plain = p.server.encode(3, 2f64.powi(20), (1, 1), |_, _| vec![1.0]).unwrap();
    let other = p.server.multiply_plain(&x, &plain).unwrap();
    assert!(matches!(p.server.add(&x, &other), Err(HeError::ScaleMismatch { .. })));
    assert!(matches!(p.server.drop_to(&x, 1), Err(HeError::DepthExhausted { .. })));
    assert!(p.server.drop_to(&x, 4).is_err() && p.server.relinearise(&x).is_err());

    let stranger = CkksClient::generate(ctx.clone(), &mut p.rng);
    let form = ctx.fresh(3, 1.0);
    let sent = stranger.encrypt(&[0.5], form, &mut p.rng).unwrap();
    assert!(matches!(p.server.load(&sent, form), Err(HeError::WrongKey { .. })));
    let response = p.server.respond(&x, 2, &mut p.rng).unwrap();
    assert!(matches!(stranger.decrypt(&response), Err(HeError::WrongKey { .. })));
    assert!(stranger.encrypt(&[1.5], form, &mut p.rng).is_err(), "above the agreed bound");

    let params = ctx.params();
    let bytes = response.to_bytes(params);
    assert!(CkksResponse::from_bytes(params, 1, 2, &bytes[1..]).is_err());
    assert!(CkksResponse::from_bytes(params, 2, 2, &bytes).is_err());
    assert!(CkksResponse::from_bytes(params, usize::MAX, 2, &bytes).is_err());
    let mut bad = bytes.clone();
    bad[40..].fill(0xff);
    assert!(CkksResponse::from_bytes(params, 1, 2, &bad).is_err());
    bad = bytes;
    bad[32..40].copy_from_slice(&f64::NAN.to_le_bytes());
    assert!(CkksResponse::from_bytes(params, 1, 2, &bad).is_err());
}

#[test]
fn keys_survive_the_wire_and_are_checked() {
    let mut p = parties(cpu(), SMALL, 2);
    let params = p.client.context().params().clone();
    let keys = p.client.keys(&[1, 7], &mut p.rng).unwrap();
    let bytes = keys.to_bytes(&params);
    assert_eq!(CkksKeys::byte_len(&params, 2), Some(bytes.len()));
    assert!(CkksKeys::from_bytes(&params, &[1, 7], &bytes).unwrap() == keys);
    assert!(CkksKeys::from_bytes(&params, &[1], &bytes).is_err());
    assert!(CkksKeys::from_bytes(&params, &[1, 7], &bytes[..99]).is_err());
    assert!(p.client.keys(&[3, 3], &mut p.rng).is_err() && p.client.keys(&[0], &mut p.rng).is_err());
    // The secret key in none of its forms is in what leaves the client.
    for form in p.client.inner().secret().forms(&params) {
        assert!(!bytes.windows(form.len()).any(|window| window == form));
    }
}
