//! Every packing against the product of the integers, its counts against what was counted.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests, which clippy does not recognise outside test functions"
)]

use std::sync::Arc;

use heliostat::{
    arith::{ShareModulus, sample, sample::SecureRng},
    engine::{Backend, cpu::CpuBackend, schedule::Capacity},
    he::{
        BfvContext, COLUMN_4096, COLUMN_8192, GaloisKeys, HeClient, HeError, HeServer, MATMUL_8192, ParameterSet,
        ParameterSpec, PublicKey, Response, SeededCiphertexts,
    },
    packing::{
        BatchColumnPacking, CoefficientLayout, CoefficientPacking, CostWeights, Counts, LoadedInput, MatmulSpec,
        OperandBound, Packing, SlotEncoder, SlotMethod, SlotPacking,
    },
};
use proptest::prelude::*;
use rand_core::Rng;

struct Parties {
    client: HeClient,
    rng: SecureRng,
    backend: Arc<dyn Backend>,
    /// Words of a tile, where a test wants small ones.
    tile: Option<usize>,
}

impl Parties {
    fn new(set: ParameterSpec) -> Self {
        Self::on(set, Arc::new(CpuBackend::new(None)), None)
    }

    fn on(set: ParameterSpec, backend: Arc<dyn Backend>, tile: Option<usize>) -> Self {
        let mut rng = SecureRng::from_os().unwrap();
        let params = ParameterSet::new(set).unwrap();
        let client = HeClient::generate(BfvContext::new(Arc::new(CpuBackend::new(None)), params), &mut rng);
        Self { client, rng, backend, tile }
    }

    fn params(&self) -> ParameterSet {
        self.client.context().params().clone()
    }

    /// A server with the keys that the packing asks for, through bytes.
    fn server(&mut self, packing: &dyn Packing) -> HeServer {
        let (params, elements) = (self.params(), packing.rotation_elements());
        let public = self.client.public_key(&mut self.rng).unwrap();
        let public = PublicKey::from_bytes(&params, &public.to_bytes(&params)).unwrap();
        let galois = (!elements.is_empty()).then(|| {
            let galois = self.client.galois_keys_for(&elements, &mut self.rng).unwrap();
            GaloisKeys::from_bytes_for(&params, &elements, &galois.to_bytes(&params)).unwrap()
        });
        let ctx = match self.tile {
            Some(tile) => BfvContext::with_limits(
                self.backend.clone(),
                params,
                tile,
                Capacity { device: 0, ..Capacity::new(2, 1 << 24) },
            ),
            None => BfvContext::new(self.backend.clone(), params),
        };
        HeServer::new(ctx, &public, galois.as_ref()).unwrap()
    }

    /// Shares of the client and the server, response and server of a product.
    fn run(&mut self, packing: &dyn Packing, x: &[Vec<u64>], w: &[Vec<i64>]) -> (Vec<u64>, Vec<u64>) {
        let (params, server) = (self.params(), self.server(packing));
        let before = (self.client.context().counters(), server.context().counters());
        let mut bytes_up = 0;
        let mut load = |(k, x): (usize, &Vec<u64>)| -> LoadedInput {
            let input = packing.encrypt_input(&self.client, k, x, &mut self.rng).unwrap();
            let bytes = input.to_bytes(&params);
            bytes_up += bytes.len() as u64;
            packing.load_input(&server, k, Arc::new(packing.read_input(&params, k, &bytes).unwrap())).unwrap()
        };
        let inputs: Vec<LoadedInput> = x.iter().enumerate().map(&mut load).collect();
        let w: Vec<&[i64]> = w.iter().map(|w| &w[..]).collect();
        let weights = packing.prepare_weights(&server, &w).unwrap();
        let (response, mask) = packing.multiply_prepared(&server, &inputs, &weights, &mut self.rng).unwrap();
        let bytes = packing.write_output(&response);
        let share = packing.decrypt_output(&self.client, &packing.read_output(&params, &bytes).unwrap()).unwrap();

        let (counts, after) = (packing.counts(), (self.client.context().counters(), server.context().counters()));
        let what = format!("{} {:?}", packing.name(), packing.spec());
        assert_eq!(after.1.products - before.1.products, counts.products, "{what}");
        assert_eq!(after.1.scalar_products - before.1.scalar_products, counts.scalar_products, "{what}");
        assert_eq!(after.1.key_switches - before.1.key_switches, counts.key_switches, "{what}");
        assert_eq!(after.1.ntts - before.1.ntts, counts.server_ntts, "{what}");
        assert_eq!(after.0.ntts - before.0.ntts, counts.client_ntts, "{what}");
        assert_eq!(after.0.encrypted - before.0.encrypted, counts.ciphertexts_up, "{what}");
        assert_eq!(after.1.responded - before.1.responded, counts.ciphertexts_down, "{what}");
        assert_eq!(after.0.decrypted - before.0.decrypted, counts.ciphertexts_down, "{what}");
        assert_eq!((bytes_up, bytes.len() as u64), (counts.bytes_up, counts.bytes_down), "{what}");
        (share, mask)
    }

    /// A product of uniform shares and random weights, the extreme values among both, against plain integers.
    fn check(&mut self, packing: &dyn Packing) {
        let MatmulSpec { t, heads, rows, inner, cols, operand } = packing.spec().clone();
        let bound = operand.max_abs(t) as i64;
        let mut expected = vec![0u64; heads * rows * cols];
        let (mut inputs, mut weights) = (Vec::new(), Vec::new());
        for inner in inner {
            let mut x = vec![0; heads * rows * inner];
            sample::uniform_ring(&mut self.rng, t, &mut x);
            let ends = x.len() - 1;
            (x[0], x[ends], x[ends / 2]) = (t.largest(), 0, t.largest() / 2 + 1);
            let mut w: Vec<i64> = (0..heads * inner * cols)
                .map(|_| match operand {
                    OperandBound::Uniform => t.to_signed(t.reduce(self.rng.next_u64())),
                    _ => (self.rng.next_u64() % (2 * bound as u64 + 1)) as i64 - bound,
                })
                .collect();
            let ends = w.len() - 1;
            (w[ends], w[0]) = (bound, -bound);
            for (k, out) in expected.iter_mut().enumerate() {
                let (head, i, o) = (k / cols / rows, k / cols % rows, k % cols);
                for f in 0..inner {
                    let product =
                        t.mul(x[(head * rows + i) * inner + f], t.from_signed(w[(head * inner + f) * cols + o]));
                    *out = t.add(*out, product);
                }
            }
            inputs.push(x);
            weights.push(w);
        }
        let (share, mask) = self.run(packing, &inputs, &weights);
        assert!(mask.iter().all(|&z| z <= t.largest()));
        let got: Vec<u64> = share.iter().zip(&mask).map(|(&c, &z)| t.add(c, z)).collect();
        assert!(got == expected, "{} {:?}", packing.name(), packing.spec());
    }
}

fn pow2(bits: u32) -> ShareModulus {
    ShareModulus::pow2(bits).unwrap()
}

fn spec(t: ShareModulus, rows: usize, inner: &[usize], cols: usize, max_abs: u64) -> MatmulSpec {
    MatmulSpec { t, heads: 1, rows, inner: inner.to_vec(), cols, operand: OperandBound::Weights { max_abs } }
}

/// Pearson's statistic of values in 64 equal parts of `[0, t)`, as deviations from its mean.
fn uniformity(t: ShareModulus, values: &[u64]) -> f64 {
    let mut counts = [0u64; 64];
    values.iter().for_each(|&x| counts[(x as u128 * 64 / (t.largest() as u128 + 1)) as usize] += 1);
    let expected = values.len() as f64 / 64.0;
    let statistic: f64 = counts.iter().map(|&c| (c as f64 - expected).powi(2) / expected).sum();
    (statistic - 63.0) / 126f64.sqrt()
}

mod batch_column {
    use super::*;

    #[test]
    fn exact_in_every_ring_and_shape() {
        for (set, cases) in [
            (
                COLUMN_4096,
                vec![
                    spec(pow2(32), 4096, &[24], 16, 2047),
                    spec(pow2(38), 100, &[9], 5, 32767),
                    spec(pow2(20), 1, &[1], 1, 1),
                    spec(pow2(38), 4097, &[3, 5], 2, 4095),
                    spec(pow2(1), 5, &[7], 3, 100),
                    spec(ShareModulus::slots(37, 4096).unwrap(), 300, &[8], 6, 32767),
                ],
            ),
            (COLUMN_8192, vec![spec(pow2(64), 300, &[10], 7, 32767), spec(pow2(48), 9000, &[2, 1], 3, 2047)]),
            (MATMUL_8192, vec![spec(pow2(48), 64, &[6], 4, 2047)]),
        ] {
            let mut parties = Parties::new(set);
            for spec in cases {
                parties.check(&BatchColumnPacking::new(&parties.params(), &spec).unwrap());
            }
        }
    }

    /// Neither tiles of outputs, nor chunks of columns, nor columns that come as they are needed change anything.
    #[test]
    fn tiles_and_chunks() {
        let words = 2 * 4 * 4096;
        for tile in [1, 2 * words, 5 * words] {
            let mut parties = Parties::on(COLUMN_4096, Arc::new(CpuBackend::new(None)), Some(tile));
            let params = parties.params();
            for spec in [spec(pow2(32), 5000, &[19, 3], 11, 2047), spec(pow2(32), 8, &[150], 3, 2047)] {
                parties.check(&BatchColumnPacking::new(&params, &spec).unwrap());
            }
        }
    }

    #[test]
    fn counts_of_a_layer() {
        let params = ParameterSet::new(COLUMN_4096).unwrap();
        let counts = BatchColumnPacking::for_matmul(&params, pow2(32), 4096, 768, 768, 2047).unwrap().counts();
        assert_eq!((counts.key_switches, counts.products, counts.scalar_products), (0, 0, 768 * 768));
        assert_eq!((counts.ciphertexts_up, counts.ciphertexts_down), (768, 768));
        assert_eq!((counts.server_ntts, counts.client_ntts), (768 * 3 * 4, 768 * 4 + 768 * 2 * 2));
        // The same for one row, but for the coefficients of c0.
        let one = BatchColumnPacking::for_matmul(&params, pow2(32), 1, 768, 768, 2047).unwrap();
        assert_eq!(Counts { bytes_down: 0, ..one.counts() }, Counts { bytes_down: 0, ..counts });
        assert_eq!(one.filled(), 1.0 / 4096.0);
        let more = BatchColumnPacking::for_matmul(&params, pow2(32), 4097, 768, 768, 2047).unwrap();
        assert_eq!((more.counts().ciphertexts_up, more.blocks()), (2 * 768, 2));
    }

    #[test]
    fn rings_and_weights_outside_their_rules_are_refused() {
        let (small, large) = (ParameterSet::new(COLUMN_4096).unwrap(), ParameterSet::new(COLUMN_8192).unwrap());
        let plan = |params, bits, rows, inner, max_abs| {
            BatchColumnPacking::for_matmul(params, pow2(bits), rows, inner, 768, max_abs)
        };
        // Every layer up to 3072 features and 15 bits of weights in 38 bits, none such in 39.
        assert!(plan(&small, 38, 4096, 3072, 32767).is_ok());
        let e = plan(&small, 39, 4096, 3072, 32767).unwrap_err();
        assert!(matches!(e, HeError::Width { ring_bits: 39, .. }), "{e}");
        assert!(plan(&large, 64, 8192, 3072, 32767).is_ok());
        for (rows, inner, max_abs) in [(0, 5, 1), (5, 0, 1), (5, 5, 1 << 15), (usize::MAX, 5, 1), (5, usize::MAX, 1)] {
            assert!(plan(&small, 32, rows, inner, max_abs).is_err(), "{rows} {inner} {max_abs}");
        }
        let heads = MatmulSpec { heads: 2, ..spec(pow2(32), 5, &[5], 5, 1) };
        assert!(BatchColumnPacking::new(&small, &heads).is_err());
        let uniform = MatmulSpec { operand: OperandBound::Uniform, ..spec(pow2(32), 5, &[5], 5, 1) };
        assert!(BatchColumnPacking::new(&small, &uniform).is_err());
    }

    /// Rows that hold nothing: what the client decrypts there is minus a mask, and says nothing of other rows.
    #[test]
    fn masks_are_uniform_over_all_rows() {
        for t in [pow2(32), ShareModulus::slots(37, 4096).unwrap()] {
            let mut parties = Parties::new(COLUMN_4096);
            let packing = BatchColumnPacking::for_matmul(&parties.params(), t, 4096, 3, 4, 2047).unwrap();
            // One row is used.
            let mut x = vec![0; 4096 * 3];
            x[..3].copy_from_slice(&[t.largest(), 1, 2]);
            let (share, mask) = parties.run(&packing, &[x], &[vec![2047; 12]]);
            assert!(uniformity(t, &mask).abs() < 6.0 && uniformity(t, &share[4..]).abs() < 6.0);
            assert!(share[4..].iter().zip(&mask[4..]).all(|(&c, &z)| t.add(c, z) == 0));
            let distinct: std::collections::HashSet<_> = mask.iter().collect();
            assert!(distinct.len() + 4 > mask.len());
        }
    }
}

mod slots {
    use super::*;

    const METHODS: [SlotMethod; 3] = [SlotMethod::TokensFirstPlain, SlotMethod::TokensFirst, SlotMethod::FeaturesFirst];

    fn prime(bits: u32) -> ShareModulus {
        ShareModulus::slots(bits, 8192).unwrap()
    }

    fn planned(method: SlotMethod, rows: usize, inner: usize, cols: usize) -> SlotPacking {
        let params = ParameterSet::new(MATMUL_8192).unwrap();
        SlotPacking::for_matmul(&params, method, prime(33), rows, inner, cols, 2047).unwrap()
    }

    /// The figures of Primer's layer: 128 tokens, 768 features there and back.
    #[test]
    fn counts_of_a_layer() {
        let [plain, steps, features] = METHODS.map(|method| planned(method, 128, 768, 768));
        for packing in [&plain, &steps] {
            let counts = packing.counts();
            assert_eq!((counts.ciphertexts_up, counts.ciphertexts_down, counts.products), (12, 12, 9216));
        }
        assert_eq!((plain.counts().key_switches, steps.counts().key_switches), (756, 168));
        assert_eq!((plain.steps(), steps.steps(), plain.slots()), ((64, 1), (8, 8), (128, 64)));
        assert_eq!((plain.rotation_elements().len(), steps.rotation_elements().len()), (63, 14));
        // 8 tokens of 1024 features a ciphertext; differences of -767 to 767.
        let counts = features.counts();
        assert_eq!((counts.ciphertexts_up, counts.ciphertexts_down, features.slots()), (16, 16, (8, 1024)));
        assert_eq!((counts.key_switches, counts.products), (16 * 1534, 16 * 1535));
        assert_eq!(features.rotation_elements().len(), 32);
    }

    /// What a general shape costs, by hand: ciphertexts, plain rotations and the best split of all.
    #[test]
    fn formulas() {
        for rows in [1usize, 3, 30, 32, 128, 100, 5000] {
            for (inner, cols) in [(1usize, 1usize), (64, 64), (128, 512), (512, 128), (768, 3072), (100, 7)] {
                let tokens = usize::min(rows.next_power_of_two(), 4096);
                let (groups, width) = (rows.div_ceil(tokens), 8192 / tokens);
                let (up, down) = (groups * inner.div_ceil(width), groups * cols.div_ceil(width));
                let plain = planned(SlotMethod::TokensFirstPlain, rows, inner, cols).counts();
                assert_eq!((plain.ciphertexts_up, plain.ciphertexts_down), (up as u64, down as u64));
                // Columns that a narrow product leaves spare take part of its terms.
                let part = |features: usize| features.next_power_of_two().min(width);
                let turns = (part(inner) * part(cols) / width).max(1);
                assert_eq!(plain.key_switches, (up * (turns - 1)) as u64);
                assert_eq!(plain.products, (up * down / groups * turns) as u64);
                let steps = planned(SlotMethod::TokensFirst, rows, inner, cols).counts();
                let best = (0..=turns.ilog2()).map(|log| up * ((1 << log) - 1) + down * ((turns >> log) - 1)).min();
                assert_eq!(steps.key_switches, best.unwrap() as u64, "{rows} {inner} {cols}");
                assert_eq!(steps.products, plain.products);
            }
        }
    }

    #[test]
    fn exact_in_ragged_shapes() {
        let mut parties = Parties::new(MATMUL_8192);
        let params = parties.params();
        for (method, rows, inner, cols) in [
            // 8 features a ciphertext: several blocks, ragged ones among them.
            (SlotMethod::TokensFirst, 1000, &[16][..], 24),
            (SlotMethod::TokensFirst, 700, &[9], 1),
            (SlotMethod::TokensFirst, 30, &[5], 3),
            (SlotMethod::TokensFirst, 4097, &[3, 4], 5),
            (SlotMethod::TokensFirst, 130, &[40, 70], 33),
            (SlotMethod::TokensFirstPlain, 1000, &[11], 9),
            (SlotMethod::TokensFirstPlain, 60, &[20], 70),
            (SlotMethod::TokensFirstPlain, 5000, &[2], 3),
            (SlotMethod::FeaturesFirst, 5, &[20], 13),
            (SlotMethod::FeaturesFirst, 600, &[9, 16], 5),
            (SlotMethod::FeaturesFirst, 3, &[1], 40),
        ] {
            let packing = SlotPacking::new(&params, method, &spec(prime(36), rows, inner, cols, 32767)).unwrap();
            parties.check(&packing);
        }
    }

    /// The narrowest and the widest ring, weights of its whole range.
    #[test]
    fn every_width_of_prime() {
        let mut parties = Parties::new(MATMUL_8192);
        let params = parties.params();
        for (bits, digits) in [(31, 1), (34, 1), (38, 1), (45, 2), (52, 2), (58, 3)] {
            let t = prime(bits);
            let uniform = MatmulSpec { operand: OperandBound::Uniform, ..spec(t, 1024, &[8], 8, 0) };
            for method in METHODS {
                let packing = SlotPacking::new(&params, method, &uniform).unwrap();
                assert_eq!(packing.digits(), digits, "{bits}");
                parties.check(&packing);
            }
        }
    }

    #[test]
    fn small_tiles_change_nothing() {
        for tile in [1, 3 * 5 * 8192] {
            let mut parties = Parties::on(MATMUL_8192, Arc::new(CpuBackend::new(None)), Some(tile));
            let packing =
                SlotPacking::new(&parties.params(), SlotMethod::TokensFirst, &spec(prime(35), 500, &[40], 20, 100));
            parties.check(&packing.unwrap());
        }
    }

    #[test]
    fn masks_are_uniform_over_all_slots() {
        let t = prime(34);
        let mut parties = Parties::new(MATMUL_8192);
        // 1024 tokens, of which one is used, and 8 columns fill a ciphertext.
        let packing = SlotPacking::for_matmul(&parties.params(), SlotMethod::TokensFirst, t, 1024, 8, 8, 2047).unwrap();
        let mut x = vec![0; 1024 * 8];
        x[..8].fill(t.largest());
        let (share, mask) = parties.run(&packing, &[x], &[vec![-2047; 64]]);
        assert!(uniformity(t, &mask).abs() < 6.0 && uniformity(t, &share[8..]).abs() < 6.0);
        assert!(share[8..].iter().zip(&mask[8..]).all(|(&c, &z)| t.add(c, z) == 0));
    }

    #[test]
    fn what_cannot_be_planned() {
        let (params, column) = (ParameterSet::new(MATMUL_8192).unwrap(), ParameterSet::new(COLUMN_8192).unwrap());
        let good = spec(prime(38), 128, &[768], 768, 2047);
        let plan = |params, spec: &MatmulSpec| SlotPacking::new(params, SlotMethod::TokensFirst, spec);
        assert!(
            plan(&params, &good).is_ok() && plan(&params, &MatmulSpec { inner: vec![3072], ..good.clone() }).is_ok()
        );
        // A ring of another dimension, a power of two.
        for t in [ShareModulus::slots(33, 16).unwrap(), pow2(33)] {
            assert!(plan(&params, &MatmulSpec { t, ..good.clone() }).is_err(), "{t:?}");
        }
        // More terms than any number of digits carries in so wide a ring.
        let e = plan(&params, &MatmulSpec { t: prime(62), inner: vec![1 << 22], ..good.clone() }).err().unwrap();
        assert!(matches!(e, HeError::Width { .. }), "{e}");
        assert!(plan(&column, &good).is_err(), "no special prime");
        for bad in [
            MatmulSpec { heads: 2, ..good.clone() },
            MatmulSpec { rows: 0, ..good.clone() },
            MatmulSpec { cols: 0, ..good.clone() },
            MatmulSpec { inner: vec![], ..good.clone() },
            MatmulSpec { inner: vec![5, 0], ..good.clone() },
            MatmulSpec { rows: usize::MAX, ..good.clone() },
            MatmulSpec { operand: OperandBound::Weights { max_abs: 1 << 38 }, ..good.clone() },
        ] {
            assert!(plan(&params, &bad).is_err(), "{bad:?}");
        }
        assert!(SlotEncoder::new(8192, pow2(32)).is_err());
    }

    /// The server names the key that it misses.
    #[test]
    fn without_keys_there_is_no_product() {
        let mut parties = Parties::new(MATMUL_8192);
        let params = parties.params();
        let packing = SlotPacking::for_matmul(&params, SlotMethod::TokensFirst, prime(33), 1024, 8, 8, 9).unwrap();
        let column = BatchColumnPacking::for_matmul(&params, pow2(32), 10, 4, 3, 100).unwrap();
        let server = parties.server(&column);
        let input = packing.encrypt_input(&parties.client, 0, &vec![1; 8192], &mut parties.rng).unwrap();
        let input = packing.load_input(&server, 0, Arc::new(input)).unwrap();
        let weights = packing.prepare_weights(&server, &[&[1; 64]]).unwrap();
        let e = packing.multiply_prepared(&server, &[input], &weights, &mut parties.rng).unwrap_err().to_string();
        assert!(e.contains("switching key"), "{e}");
    }
}

/// Operands of another packing, of other sizes, beyond their bound: errors, and no panic.
fn refuses_wrong_use(packing: &dyn Packing, other: &dyn Packing, parties: &mut Parties) {
    let server = parties.server(packing);
    let (params, rng) = (parties.params(), &mut parties.rng);
    let MatmulSpec { rows, inner, cols, operand, t, .. } = packing.spec().clone();
    let (x, w) = (vec![1; rows * inner[0]], vec![1i64; inner[0] * cols]);
    let input = packing.encrypt_input(&parties.client, 0, &x, rng).unwrap();
    let bytes = input.to_bytes(&params);
    let input = Arc::new(input);
    let loaded = packing.load_input(&server, 0, input.clone()).unwrap();
    let weights = packing.prepare_weights(&server, &[&w]).unwrap();
    let (response, _) = packing.multiply_prepared(&server, std::slice::from_ref(&loaded), &weights, rng).unwrap();
    let output = packing.write_output(&response);

    assert!(packing.encrypt_input(&parties.client, 0, &x[1..], rng).is_err());
    assert!(packing.encrypt_input(&parties.client, 1, &x, rng).is_err());
    assert!(packing.prepare_weights(&server, &[&w[1..]]).is_err());
    assert!(packing.prepare_weights(&server, &[&w, &w]).is_err() && packing.prepare_weights(&server, &[]).is_err());
    let mut heavy = w.clone();
    heavy[0] = operand.max_abs(t) as i64 + 1;
    assert!(packing.prepare_weights(&server, &[&heavy]).err().unwrap().to_string().contains("bound"));
    heavy[0] = i64::MIN;
    assert!(packing.prepare_weights(&server, &[&heavy]).is_err());
    assert!(packing.load_input(&server, 1, input.clone()).is_err());
    for bytes in [&bytes[..bytes.len() - 1], &[&bytes[..], &[0]].concat(), &[]] {
        assert!(packing.read_input(&params, 0, bytes).is_err());
    }
    for bytes in [&output[..output.len() - 1], &[&output[..], &[0]].concat(), &[]] {
        assert!(packing.read_output(&params, bytes).is_err());
    }
    let many: Vec<u64> = vec![0; params.n() * (packing.input_ciphertexts(0) + 1)];
    let many: Arc<SeededCiphertexts> = Arc::new(parties.client.encrypt(t, &many, rng).unwrap());
    assert!(packing.load_input(&server, 0, many).is_err());
    let mut multiply =
        |inputs: &[LoadedInput], weights| packing.multiply_prepared(&server, inputs, weights, rng).is_err();
    assert!(multiply(&[], &weights) && multiply(&[loaded.clone(), loaded.clone()], &weights));

    let foreign =
        other.encrypt_input(&parties.client, 0, &vec![1; other.spec().rows * other.spec().inner[0]], rng).unwrap();
    let foreign = other.load_input(&server, 0, Arc::new(foreign)).unwrap();
    let other_weights = vec![1i64; other.spec().inner[0] * other.spec().cols];
    let other_weights = other.prepare_weights(&server, &[&other_weights]).unwrap();
    let mut multiply = |input: &LoadedInput, weights| {
        packing.multiply_prepared(&server, std::slice::from_ref(input), weights, rng).is_err()
    };
    assert!(multiply(&foreign, &weights) && multiply(&loaded, &other_weights));
    let empty = Response::from_bytes(&params, packing.response_plan(), 0, 0, &[]).unwrap();
    assert!(packing.decrypt_output(&parties.client, &empty).is_err());
}

#[test]
fn wrong_use_gives_errors() {
    let mut parties = Parties::new(MATMUL_8192);
    let params = parties.params();
    let column = BatchColumnPacking::for_matmul(&params, pow2(32), 10, 4, 3, 100).unwrap();
    let coefficient = CoefficientPacking::with_block(&params, &spec(pow2(32), 10, &[40], 3, 100), 512, 2).unwrap();
    refuses_wrong_use(&column, &coefficient, &mut parties);
    refuses_wrong_use(&coefficient, &column, &mut parties);
    let t = ShareModulus::slots(33, 8192).unwrap();
    let slots = SlotPacking::for_matmul(&params, SlotMethod::TokensFirst, t, 1000, 6, 3, 100).unwrap();
    refuses_wrong_use(&slots, &column, &mut parties);
    refuses_wrong_use(&column, &slots, &mut parties);
}

#[test]
fn coefficient_packing_behind_the_trait() {
    let mut parties = Parties::new(MATMUL_8192);
    let params = parties.params();
    for (spec, stride, block) in [
        (spec(pow2(32), 32, &[77], 129, 2047), 256, 16),
        (spec(pow2(40), 7, &[20, 31], 5, 32767), 1024, 8),
        (MatmulSpec { heads: 3, operand: OperandBound::Uniform, ..spec(pow2(40), 8, &[16], 8, 0) }, 64, 16),
    ] {
        let packing = CoefficientPacking::with_block(&params, &spec, stride, block).unwrap();
        parties.check(&packing);
    }
}

mod split {
    use super::*;

    fn planned(spec: &MatmulSpec, stride: usize, block: usize, split: u32) -> CoefficientPacking {
        let params = ParameterSet::new(MATMUL_8192).unwrap();
        CoefficientPacking::with_layout(&params, spec, &CoefficientLayout { stride, block, split, limbs: None })
            .unwrap()
    }

    /// The figures of a layer of 128 tokens and 768 features: 12 ciphertexts there and back, 756 key switches without a split,
    /// 168 with half of the levels on the inputs.
    #[test]
    fn counts_of_a_layer() {
        let spec = spec(pow2(32), 128, &[768], 768, 2047);
        for (split, key_switches) in [(0, 756), (1, 384), (2, 216), (3, 168), (4, 216), (5, 384), (6, 756)] {
            let packing = planned(&spec, 64, 64, split);
            let counts = packing.counts();
            assert_eq!((counts.ciphertexts_up, counts.ciphertexts_down, counts.products), (12, 12, 9216));
            assert_eq!(
                (counts.key_switches, packing.rotation_elements().len()),
                (key_switches, [6, 6, 7, 10, 17, 32, 63][split as usize])
            );
        }
        // Where uploads are dear, that is the cheapest of all layouts.
        let params = ParameterSet::new(MATMUL_8192).unwrap();
        let weights = CostWeights { upload: 400.0, max_split: 3, ..CostWeights::default() };
        let chosen = CoefficientPacking::choose(&params, &spec, &weights).unwrap();
        assert_eq!((chosen.stride(), chosen.block(), chosen.split()), (64, 64, 3));
        assert_eq!(
            CoefficientPacking::choose(&params, &spec, &CostWeights { max_split: 0, ..weights }).unwrap().split(),
            0
        );
    }

    /// `A - 1` key switches an input and `B - 1` an output, whatever the shape; products of absent outputs are left out.
    #[test]
    fn formulas() {
        for (rows, stride) in [(128, 64), (30, 256), (7, 1024), (1, 8192)] {
            for (inner, cols) in [(1usize, 1usize), (64, 64), (768, 768), (100, 7), (65, 300), (768, 3072)] {
                for block in [8usize, 16, 64] {
                    for split in 0..=block.ilog2() {
                        let counts =
                            planned(&spec(pow2(32), rows, &[inner], cols, 2047), stride, block, split).counts();
                        let (turns, groups) = (1 << split, cols.div_ceil(stride / block));
                        let (full, rest) = (groups / block, groups % block);
                        let last = if rest == 0 { 0 } else { usize::max(rest.next_power_of_two(), turns) / turns };
                        let up = inner.div_ceil(block);
                        let outputs = full * (block / turns) + last;
                        let down = full + usize::from(rest > 0);
                        assert_eq!((counts.ciphertexts_up, counts.ciphertexts_down), (up as u64, down as u64));
                        assert_eq!(counts.key_switches, (up * (turns - 1) + outputs - down) as u64);
                        let computed = full * (block / turns) + last.min(rest);
                        assert_eq!(
                            counts.products,
                            (computed * turns * up) as u64,
                            "{rows} {inner} {cols} {block} {split}"
                        );
                    }
                }
            }
        }
    }

    /// Full and ragged packs, several blocks and inputs, several columns a polynomial, every number of levels.
    #[test]
    fn exact_in_ragged_shapes() {
        let mut parties = Parties::new(MATMUL_8192);
        for (spec, stride, block, split) in [
            (spec(pow2(32), 128, &[64], 64, 2047), 64, 64, 3),
            (spec(pow2(32), 128, &[33], 40, 2047), 64, 16, 2),
            (spec(pow2(40), 32, &[77], 129, 32767), 256, 16, 1),
            (spec(pow2(37), 20, &[31, 9], 70, 2048), 256, 32, 4),
            (spec(pow2(64), 7, &[20, 31], 5, 32767), 1024, 8, 3),
            (spec(pow2(20), 1, &[40], 3, 100), 8192, 4, 2),
            (spec(pow2(48), 30, &[10], 300, 2047), 256, 2, 1),
            (spec(ShareModulus::slots(37, 8192).unwrap(), 100, &[10], 20, 2047), 64, 8, 2),
            (MatmulSpec { operand: OperandBound::Uniform, ..spec(pow2(43), 8, &[60], 40, 0) }, 1024, 64, 3),
        ] {
            parties.check(&planned(&spec, stride, block, split));
        }
    }

    /// Weights of one sign and size, where the errors of the digits add up.
    #[test]
    fn weights_of_one_sign() {
        let mut parties = Parties::new(MATMUL_8192);
        let packing = planned(&spec(pow2(64), 128, &[64], 64, 32767), 64, 32, 3);
        let t = pow2(64);
        let (share, mask) = parties.run(&packing, &[vec![t.largest(); 128 * 64]], &[vec![32767; 64 * 64]]);
        let expected = t.from_signed(-32767 * 64);
        assert!(share.iter().zip(&mask).all(|(&c, &z)| t.add(c, z) == expected));
    }

    #[test]
    fn small_tiles_change_nothing() {
        for tile in [1, 3 * 5 * 8192] {
            let mut parties = Parties::on(MATMUL_8192, Arc::new(CpuBackend::new(None)), Some(tile));
            parties.check(&planned(&spec(pow2(32), 100, &[40], 20, 100), 64, 8, 2));
        }
    }

    /// A client whose keys are those of output packing alone serves no split, and heads take none.
    #[test]
    fn what_cannot_be_planned_or_run() {
        let mut parties = Parties::new(MATMUL_8192);
        let params = parties.params();
        let spec = spec(pow2(32), 128, &[16], 16, 2047);
        let plan = |spec: &MatmulSpec, split| {
            CoefficientPacking::with_layout(
                &params,
                spec,
                &CoefficientLayout { stride: 64, block: 16, split, limbs: None },
            )
        };
        assert!(plan(&spec, 4).is_ok() && plan(&spec, 5).is_err() && plan(&spec, 70).is_err());
        let heads = MatmulSpec { heads: 2, ..spec.clone() };
        assert!(plan(&heads, 0).is_ok() && plan(&heads, 1).is_err());
        let uniform = |bits| MatmulSpec { t: pow2(bits), operand: OperandBound::Uniform, ..spec.clone() };
        // The narrower width rule of uniform operands.
        assert!(plan(&uniform(48), 0).is_ok() && plan(&uniform(43), 3).is_ok());
        assert!(matches!(plan(&uniform(48), 3), Err(HeError::Width { ring_bits: 48, .. })));
        let (split, whole) = (plan(&spec, 2).unwrap(), plan(&spec, 0).unwrap());
        let server = parties.server(&whole);
        let input = Arc::new(split.encrypt_input(&parties.client, 0, &[1; 128 * 16], &mut parties.rng).unwrap());
        let e = split.load_input(&server, 0, input.clone()).err().unwrap().to_string();
        assert!(e.contains("switching key"), "{e}");
        // Inputs that were turned for another split.
        let server = parties.server(&split);
        let loaded = whole.load_input(&server, 0, input).unwrap();
        let weights = split.prepare_weights(&server, &[&[1; 256]]).unwrap();
        assert!(split.multiply_prepared(&server, &[loaded], &weights, &mut parties.rng).is_err());
    }
}

mod limbs {
    use super::*;

    fn planned(spec: &MatmulSpec, limbs: Option<usize>) -> Result<CoefficientPacking, HeError> {
        let params = ParameterSet::new(MATMUL_8192).unwrap();
        CoefficientPacking::with_layout(&params, spec, &CoefficientLayout { stride: 64, block: 8, split: 0, limbs })
    }

    /// The width rule with 30 bits a limb, and 30720 bytes a limb and ciphertext on the line.
    #[test]
    fn the_fewest_that_the_ledger_allows() {
        let params = ParameterSet::new(MATMUL_8192).unwrap();
        for (bits, limbs) in [(1, 3), (20, 3), (23, 3), (24, 4), (32, 4), (48, 4), (53, 4), (54, 5), (64, 5)] {
            let layer = spec(pow2(bits), 128, &[768], 768, 2047);
            let fewest = planned(&layer, None).unwrap();
            assert_eq!((fewest.limbs(), fewest.counts().bytes_up), (limbs, 96 * limbs as u64 * 30720 + 40), "{bits}");
            assert_eq!(fewest.input_bytes(&params, 0), Some(fewest.counts().bytes_up as usize));
            assert!(matches!(planned(&layer, Some(limbs - 1)), Err(HeError::Width { .. })), "{bits}");
            for more in limbs..=5 {
                assert_eq!(planned(&layer, Some(more)).unwrap().limbs(), more);
            }
            assert!(planned(&layer, Some(0)).is_err() && planned(&layer, Some(6)).is_err());
            // All of them unless asked for.
            assert_eq!(CoefficientPacking::with_block(&params, &layer, 64, 8).unwrap().limbs(), 5);
            let all = CoefficientPacking::choose(&params, &layer, &CostWeights::default()).unwrap();
            let few = CostWeights { fewest_limbs: true, ..CostWeights::default() };
            // Another block may take one fewer.
            let few = CoefficientPacking::choose(&params, &layer, &few).unwrap();
            assert!(all.limbs() == 5 && (limbs - 1..=limbs).contains(&few.limbs()));
        }
    }

    #[test]
    fn exact_at_every_level() {
        let mut parties = Parties::new(MATMUL_8192);
        for (bits, limbs, max_abs) in
            [(8, 3, 1 << 16), (24, 3, 2047), (33, 4, 1 << 16), (50, 4, 2047), (40, 5, 1 << 20), (64, 5, 2047)]
        {
            parties.check(&planned(&spec(pow2(bits), 100, &[50], 21, max_abs), Some(limbs)).unwrap());
        }
    }

    /// Inputs of one level at another.
    #[test]
    fn levels_do_not_mix() {
        let mut parties = Parties::new(MATMUL_8192);
        let layer = spec(pow2(24), 100, &[50], 21, 100);
        let (three, four) = (planned(&layer, Some(3)).unwrap(), planned(&layer, Some(4)).unwrap());
        let (server, params) = (parties.server(&three), parties.params());
        let input = three.encrypt_input(&parties.client, 0, &[1; 5000], &mut parties.rng).unwrap();
        assert!(four.read_input(&params, 0, &input.to_bytes(&params)).is_err());
        assert!(four.load_input(&server, 0, Arc::new(input.clone())).is_err());
        let input = three.load_input(&server, 0, Arc::new(input)).unwrap();
        let weights = four.prepare_weights(&server, &[&[1; 1050]]).unwrap();
        assert!(four.multiply_prepared(&server, &[input], &weights, &mut parties.rng).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn split_points_of_any_shape(
        log_rows in 3u32..8, less in 0usize..4, inner in 1usize..80, cols in 1usize..80, cut in 0u32..3, split in 1u32..4,
    ) {
        let rows = (1 << log_rows) - less;
        let stride = usize::min(8192 >> log_rows, 128);
        let block = stride >> cut;
        let mut parties = Parties::new(MATMUL_8192);
        let layout = CoefficientLayout { stride, block, split: split.min(block.ilog2()), limbs: None };
        let spec = spec(pow2(36), rows, &[inner], cols, 2047);
        parties.check(&CoefficientPacking::with_layout(&parties.params(), &spec, &layout).unwrap());
    }

    #[test]
    fn batch_column_of_any_shape(rows in 1usize..9000, inner in 1usize..12, more in 0usize..3, cols in 1usize..9, bits in 1u32..=38) {
        let inner: Vec<usize> = if more == 0 { vec![inner] } else { vec![inner, more] };
        let mut parties = Parties::new(COLUMN_4096);
        let spec = spec(pow2(bits), rows, &inner, cols, 2047);
        parties.check(&BatchColumnPacking::new(&parties.params(), &spec).unwrap());
    }

    #[test]
    fn slots_of_any_shape(
        log_rows in 5u32..13, less in 0usize..20, inner in 1usize..20, cols in 1usize..20, bits in 31u32..=37, pick in 0usize..3,
    ) {
        let rows = (1 << log_rows) - less;
        let method = [SlotMethod::TokensFirst, SlotMethod::TokensFirst, SlotMethod::FeaturesFirst][pick];
        let mut parties = Parties::new(MATMUL_8192);
        let spec = spec(ShareModulus::slots(bits, 8192).unwrap(), rows, &[inner], cols, 2047);
        parties.check(&SlotPacking::new(&parties.params(), method, &spec).unwrap());
    }
}

/// The first Vulkan adapter (lavapipe will do) beside the CPU, every word of every result compared; then alone, within a
/// memory budget.
mod devices {
    use super::*;
    use heliostat::engine::{
        DualBackend,
        gpu::{GpuBackend, GpuOptions, adapters},
    };

    fn open(options: &GpuOptions) -> GpuBackend {
        assert!(!adapters().is_empty(), "no Vulkan adapter: install mesa-vulkan-drivers and libvulkan1");
        GpuBackend::open(0, options).unwrap()
    }

    fn packings(set: ParameterSpec) -> Vec<Box<dyn Packing>> {
        let params = ParameterSet::new(set).unwrap();
        let column = BatchColumnPacking::for_matmul(&params, pow2(32), 50, 6, 5, 2047).unwrap();
        if set == COLUMN_4096 {
            return vec![Box::new(column)];
        }
        let t = ShareModulus::slots(33, 8192).unwrap();
        let slots = |method, rows| SlotPacking::for_matmul(&params, method, t, rows, 5, 4, 2047).unwrap();
        let coefficient = CoefficientPacking::with_block(&params, &spec(pow2(32), 500, &[20], 5, 2047), 16, 4).unwrap();
        let layout = CoefficientLayout { stride: 16, block: 8, split: 2, limbs: None };
        let split = CoefficientPacking::with_layout(&params, &spec(pow2(32), 500, &[20], 19, 2047), &layout).unwrap();
        vec![
            Box::new(slots(SlotMethod::TokensFirst, 1000)),
            Box::new(slots(SlotMethod::FeaturesFirst, 3)),
            Box::new(coefficient),
            Box::new(split),
        ]
    }

    #[test]
    fn gpu_and_cpu_agree_word_by_word() {
        let backend: Arc<dyn Backend> = Arc::new(DualBackend::new(open(&GpuOptions::default()), CpuBackend::new(None)));
        for set in [COLUMN_4096, MATMUL_8192] {
            let mut parties = Parties::on(set, backend.clone(), None);
            packings(set).iter().for_each(|packing| parties.check(packing.as_ref()));
        }
        let compared = backend.ops();
        for name in ["modular_gemm", "rotate", "matmul_plain"] {
            assert!(compared.iter().any(|count| count.name == name && count.compared > 0), "{name}");
        }
    }

    #[test]
    fn within_a_memory_budget() {
        let backend = Arc::new(open(&GpuOptions { vram_bytes: Some(48 << 20), ..GpuOptions::default() }));
        let mut parties = Parties::on(COLUMN_4096, backend.clone(), None);
        // 13 MB of columns, more than stay, and 16 MB of results, in tiles of 6.
        let packing = BatchColumnPacking::for_matmul(&parties.params(), pow2(32), 3, 100, 120, 2047).unwrap();
        parties.check(&packing);
        assert!(backend.memory().peak <= 48 << 20);
    }
}
