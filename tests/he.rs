//! Encrypted matrix products end to end, on the CPU backend.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests, which clippy does not recognise outside test functions"
)]

use std::sync::Arc;

use heliostat::{
    arith::{ShareModulus, sample, sample::SecureRng},
    engine::cpu::CpuBackend,
    he::{
        BfvContext, COLUMN_4096, COLUMN_8192, GaloisKeys, HeClient, HeServer, MATMUL_8192, MATMUL_16384, ParameterSet,
        ParameterSpec, PublicKey,
    },
    packing::{ClientMatrix, CoefficientPacking, CostWeights, EncryptedMatrix, MatmulSpec, OperandBound, Packing},
};
use rand_core::Rng;

const MAX_BLOCK: usize = 32;

struct Parties {
    client: HeClient,
    server: HeServer,
    rng: SecureRng,
}

fn parties() -> Parties {
    parties_with(MATMUL_8192)
}

fn parties_with(set: ParameterSpec) -> Parties {
    let params = ParameterSet::new(set).unwrap();
    let backend = Arc::new(CpuBackend::new(None));
    let mut rng = SecureRng::from_os().unwrap();
    let client = HeClient::generate(BfvContext::new(backend.clone(), params.clone()), &mut rng);
    let public = client.public_key(&mut rng).unwrap();
    let public = PublicKey::from_bytes(&params, &public.to_bytes(&params)).unwrap();
    let galois = (set.special_limbs > 0).then(|| {
        let galois = client.galois_keys(MAX_BLOCK, &mut rng).unwrap();
        GaloisKeys::from_bytes(&params, MAX_BLOCK, &galois.to_bytes(&params)).unwrap()
    });
    let server = HeServer::new(BfvContext::new(backend, params), &public, galois.as_ref()).unwrap();
    Parties { client, server, rng }
}

fn spec(bits: u32, heads: usize, rows: usize, inner: &[usize], cols: usize, operand: OperandBound) -> MatmulSpec {
    MatmulSpec { t: ShareModulus::pow2(bits).unwrap(), heads, rows, inner: inner.to_vec(), cols, operand }
}

fn weights(max_abs: u64) -> OperandBound {
    OperandBound::Weights { max_abs }
}

/// The product through bytes in both directions, against plain integers; counts against predictions.
fn check(parties: &mut Parties, packing: &CoefficientPacking) {
    let Parties { client, server, rng } = parties;
    let params = client.context().params();
    let MatmulSpec { t, heads, rows, inner, cols, operand } = packing.spec().clone();
    let bound = operand.max_abs(t);
    let mut expected = vec![0u64; heads * rows * cols];
    let (mut operands, mut bytes_up) = (Vec::new(), 0);
    let before = (client.context().counters(), server.context().counters());
    for (layout, &inner) in packing.inputs().iter().zip(&inner) {
        let mut x = vec![0; heads * rows * inner];
        sample::uniform_ring(rng, t, &mut x);
        let mut weight = || match operand {
            OperandBound::Uniform => t.to_signed(t.reduce(rng.next_u64())),
            _ => (rng.next_u64() % (2 * bound + 1)) as i64 - bound as i64,
        };
        let mut w: Vec<i64> = (0..heads * inner * cols).map(|_| weight()).collect();
        w[0] = (bound as i64).wrapping_neg();
        for h in 0..heads {
            for i in 0..rows {
                for f in 0..inner {
                    let x = x[(h * rows + i) * inner + f];
                    for o in 0..cols {
                        let out = &mut expected[(h * rows + i) * cols + o];
                        *out = t.add(*out, t.mul(x, t.from_signed(w[(h * inner + f) * cols + o])));
                    }
                }
            }
        }
        let bytes = client.encrypt_matrix(t, layout, &x, rng).unwrap().to_bytes(params);
        bytes_up += bytes.len();
        operands.push((EncryptedMatrix::from_bytes(params, layout, &bytes).unwrap(), w));
    }
    let operands: Vec<(&EncryptedMatrix, &[i64])> = operands.iter().map(|(x, w)| (x, &w[..])).collect();
    let (response, mask) = packing.multiply(server, &operands, rng).unwrap();
    let bytes = packing.write_response(&response);
    let share = client.decrypt_matrix(packing, &packing.read_response(params, &bytes).unwrap()).unwrap();
    let got: Vec<u64> = share.iter().zip(&mask).map(|(&c, &z)| t.add(c, z)).collect();
    assert!(got == expected, "{:?} stride {} block {}", packing.spec(), packing.stride(), packing.block());

    let counts = packing.counts();
    let after = (client.context().counters(), server.context().counters());
    assert_eq!(after.1.products - before.1.products, counts.products);
    assert_eq!(after.1.key_switches - before.1.key_switches, counts.key_switches);
    assert_eq!(after.1.ntts - before.1.ntts, counts.server_ntts);
    assert_eq!(after.0.ntts - before.0.ntts, counts.client_ntts);
    assert_eq!(after.0.encrypted - before.0.encrypted, counts.ciphertexts_up);
    assert_eq!(after.1.responded - before.1.responded, counts.ciphertexts_down);
    assert_eq!(after.0.decrypted - before.0.decrypted, counts.ciphertexts_down);
    assert_eq!((bytes_up as u64, bytes.len() as u64), (counts.bytes_up, counts.bytes_down));
}

#[test]
fn linear_layers_are_exact_in_every_ring() {
    let mut parties = parties();
    let params = parties.client.context().params().clone();
    for (bits, max_abs) in [(20, 2047), (32, 2047), (40, 4095), (48, 32767), (60, 32767), (64, 2047)] {
        let spec = spec(bits, 1, 32, &[96], 96, weights(max_abs));
        let packing =
            CoefficientPacking::choose(&params, &spec, &CostWeights { max_block: MAX_BLOCK, ..Default::default() });
        check(&mut parties, &packing.unwrap());
    }
}

#[test]
fn shapes_strides_and_blocks() {
    let mut parties = parties();
    let params = parties.client.context().params().clone();
    for (rows, inner, cols, stride, block) in [
        (1, &[40][..], 70, 8192, 4),
        (1, &[33], 5, 4096, 32),
        (8, &[100, 20], 33, 1024, 16),
        (7, &[50], 300, 1024, 1),
        (32, &[77], 129, 256, 32),
        (32, &[64], 500, 256, 2),
        (20, &[31, 1, 65], 64, 128, 8),
        (128, &[64], 64, 64, 32),
        (100, &[10], 3, 64, 16),
        (128, &[32], 40, 32, 32),
    ] {
        let spec = spec(37, 1, rows, inner, cols, weights(2048));
        check(&mut parties, &CoefficientPacking::with_block(&params, &spec, stride, block).unwrap());
    }
}

#[test]
fn share_products_are_exact() {
    let mut parties = parties();
    let params = parties.client.context().params().clone();
    for (bits, heads, rows, inner, cols) in [
        (20, 2, 8, 16, 8),
        (32, 12, 32, 32, 32),
        (40, 3, 32, 32, 32),
        (48, 12, 32, 32, 32),
        (48, 2, 128, 64, 128),
        (48, 1, 1, 64, 5),
    ] {
        let spec = spec(bits, heads, rows, &[inner], cols, OperandBound::Uniform);
        let packing =
            CoefficientPacking::choose(&params, &spec, &CostWeights { max_block: MAX_BLOCK, ..Default::default() });
        check(&mut parties, &packing.unwrap());
    }
}

#[test]
fn the_other_parameter_sets() {
    let cases = [
        (COLUMN_4096, spec(32, 1, 16, &[40], 20, weights(2047))),
        (COLUMN_8192, spec(48, 1, 16, &[40], 20, weights(32767))),
        (MATMUL_16384, spec(64, 2, 32, &[32], 32, OperandBound::Uniform)),
    ];
    for (set, spec) in cases {
        let mut parties = parties_with(set);
        let params = parties.client.context().params().clone();
        let weights = CostWeights { max_block: MAX_BLOCK, ..Default::default() };
        check(&mut parties, &CoefficientPacking::choose(&params, &spec, &weights).unwrap());
        // Without a special prime there are no key switches, and only blocks of one feature.
        assert_eq!(parties.client.galois_keys(2, &mut parties.rng).is_ok(), set.special_limbs == 1);
    }
}

#[test]
fn uniform_halves_are_uniform_and_never_repeat() {
    let Parties { client, mut rng, .. } = parties();
    let params = client.context().params().clone();
    let (n, limbs, t) = (params.n(), params.limbs(), ShareModulus::pow2(32).unwrap());
    let mut names = std::collections::HashSet::new();
    let mut first_words = std::collections::HashSet::new();
    // By half, limb and bucket: the bucket of the value, then of its low byte.
    let mut counts = vec![[[0u64; 256]; 2]; 2 * limbs];
    for _ in 0..6 {
        let ciphertexts = client.encrypt(t, &vec![0; 4 * n], &mut rng).unwrap();
        let (seed, counters) = ciphertexts.names();
        for counter in counters {
            assert!(names.insert((seed, counter)));
        }
        let words = ciphertexts.expand(&params).unwrap();
        for (row, words) in words.chunks(n).enumerate() {
            let p = params.data().moduli()[row % limbs].value();
            assert!(first_words.insert(words[..4].to_vec()));
            for &x in words {
                assert!(x < p);
                counts[row % (2 * limbs)][0][(x as u64 * 256 / p as u64) as usize] += 1;
                counts[row % (2 * limbs)][1][(x & 255) as usize] += 1;
            }
        }
    }
    for (row, counts) in counts.iter().flatten().enumerate() {
        let expected = counts.iter().sum::<u64>() as f64 / 256.0;
        let statistic: f64 = counts.iter().map(|&c| (c as f64 - expected).powi(2) / expected).sum();
        // 255 degrees of freedom: six deviations either way.
        assert!((statistic - 255.0).abs() < 6.0 * 510f64.sqrt(), "{row}: {statistic}");
    }
    // Another client draws another seed.
    let other = HeClient::generate(client.context().clone(), &mut rng);
    assert_ne!(other.encrypt(t, &vec![0; n], &mut rng).unwrap().names().0, names.iter().next().unwrap().0);
}

#[test]
fn encrypting_twice_gives_unrelated_ciphertexts() {
    let Parties { client, mut rng, .. } = parties();
    let params = client.context().params().clone();
    let message = vec![7; params.n()];
    let t = ShareModulus::pow2(40).unwrap();
    let mut encrypt = || client.encrypt(t, &message, &mut rng).unwrap().expand(&params).unwrap();
    let (a, b) = (encrypt(), encrypt());
    // About N / p of the words agree by chance.
    assert!(a.iter().zip(&b).filter(|(a, b)| a == b).count() < 8);
}

#[test]
fn decoders_refuse_wrong_bytes() {
    let Parties { client, server, mut rng } = parties();
    let params = client.context().params().clone();
    let spec = spec(32, 1, 8, &[32], 16, weights(100));
    let packing = CoefficientPacking::with_block(&params, &spec, 1024, 16).unwrap();
    let layout = packing.inputs()[0];
    let t = spec.t;
    let x = client.encrypt_matrix(t, &layout, &vec![1; 8 * 32], &mut rng).unwrap();
    let (response, _) = packing.multiply(&server, &[(&x, &vec![1; 32 * 16])], &mut rng).unwrap();

    let refuses = |name: &str, good: Vec<u8>, header: usize, read: &dyn Fn(&[u8]) -> bool| {
        assert!(read(&good), "{name}");
        for len in [0, 1, 31, good.len() / 2, good.len() - 1] {
            assert!(!read(&good[..len]), "{name} cut to {len}");
        }
        assert!(!read(&[good.clone(), vec![0]].concat()), "{name} with a byte more");
        assert!(!read(&[good.clone(), good.clone()].concat()), "{name} twice");
        // A residue of 2^30 - 1, above every modulus, or the high bits of a number above their product.
        let mut large = good.clone();
        large[header..header + 8].fill(0xff);
        assert!(!read(&large), "{name} with a residue out of range");
        let mut large = good;
        let end = large.len();
        large[end - 8..].fill(0xff);
        assert!(!read(&large), "{name} with a last residue out of range");
    };
    let (p, g) = (client.public_key(&mut rng).unwrap(), client.galois_keys(2, &mut rng).unwrap());
    refuses("public key", p.to_bytes(&params), 32, &|b| PublicKey::from_bytes(&params, b).is_ok());
    refuses("galois keys", g.to_bytes(&params), 32, &|b| GaloisKeys::from_bytes(&params, 2, b).is_ok());
    refuses("matrix", x.to_bytes(&params), 40, &|b| EncryptedMatrix::from_bytes(&params, &layout, b).is_ok());
    let kept = packing.response_len() - params.n() * packing.response_plan().c1.kept_bits as usize / 8;
    refuses("response", packing.write_response(&response), kept, &|b| packing.read_response(&params, b).is_ok());
    assert_eq!(GaloisKeys::byte_len(&params, 2), Some(g.to_bytes(&params).len()));
    assert!(GaloisKeys::from_bytes(&params, 3, &[]).is_err() && GaloisKeys::from_bytes(&params, 1 << 20, &[]).is_err());
    // A counter that would run over into the domain of the stream's name.
    let mut bytes = x.to_bytes(&params);
    bytes[32..40].fill(0xff);
    assert!(EncryptedMatrix::from_bytes(&params, &layout, &bytes).is_err());
}

#[test]
fn operands_that_do_not_fit_are_errors() {
    let Parties { client, server, mut rng } = parties();
    let params = client.context().params().clone();
    let spec = spec(32, 1, 8, &[64], 16, weights(100));
    let packing = CoefficientPacking::with_block(&params, &spec, 1024, 16).unwrap();
    let layout = packing.inputs()[0];
    let x = client.encrypt_matrix(spec.t, &layout, &vec![1; 8 * 64], &mut rng).unwrap();
    let w = vec![1; 64 * 16];
    let mut multiply =
        |packing: &CoefficientPacking, x, w: &[i64]| packing.multiply(&server, &[(x, w)], &mut rng).err();
    assert!(multiply(&packing, &x, &w).is_none());
    assert!(multiply(&packing, &x, &w[1..]).is_some());
    let mut heavy = w.clone();
    heavy[5] = -101;
    assert!(multiply(&packing, &x, &heavy).unwrap().to_string().contains("bound"));
    heavy[5] = i64::MIN;
    assert!(multiply(&packing, &x, &heavy).is_some());
    let other = CoefficientPacking::with_block(&params, &spec, 1024, 32).unwrap();
    assert!(multiply(&other, &x, &w).is_some());
    // A block wider than the client's keys.
    let wide = MatmulSpec { cols: 1024, ..spec.clone() };
    let wide = CoefficientPacking::with_block(&params, &wide, 1024, 64).unwrap();
    let x = client.encrypt_matrix(spec.t, &wide.inputs()[0], &vec![1; 8 * 64], &mut rng).unwrap();
    let e = wide.multiply(&server, &[(&x, &vec![1; 64 * 1024])], &mut rng).unwrap_err();
    assert!(e.to_string().contains("Galois"), "{e}");
    // Sizes and rings outside their rules cannot be planned.
    assert!(CoefficientPacking::with_block(&params, &spec, 2048, 16).is_err());
    let uniform = MatmulSpec { t: ShareModulus::pow2(60).unwrap(), operand: OperandBound::Uniform, ..spec.clone() };
    let e = CoefficientPacking::choose(&params, &uniform, &CostWeights::default()).unwrap_err().to_string();
    assert!(e.contains("60 bits") && e.contains("matmul-8192"), "{e}");
    assert!(CoefficientPacking::choose(&params, &MatmulSpec { rows: 9000, ..spec }, &CostWeights::default()).is_err());
}
