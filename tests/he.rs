//! Encrypted matrix products end to end, on the CPU backend.

use std::sync::Arc;

use heliostat::{
    arith::{ShareModulus, sample, sample::SecureRng},
    engine::cpu::CpuBackend,
    he::{BfvContext, GaloisKeys, HeClient, HeServer, MATMUL_8192, ParameterSet, PublicKey},
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
    let params = ParameterSet::new(MATMUL_8192).unwrap();
    let backend = Arc::new(CpuBackend::new(None));
    let mut rng = SecureRng::from_os().unwrap();
    let client = HeClient::generate(BfvContext::new(backend.clone(), params.clone()), &mut rng);
    let public = client.public_key(&mut rng).unwrap();
    let public = PublicKey::from_bytes(&params, &public.to_bytes(&params)).unwrap();
    let galois = client.galois_keys(MAX_BLOCK, &mut rng).unwrap();
    let galois = GaloisKeys::from_bytes(&params, MAX_BLOCK, &galois.to_bytes(&params)).unwrap();
    let server = HeServer::new(BfvContext::new(backend, params), &public, Some(&galois)).unwrap();
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
        w[0] = -(bound as i64);
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
    let bytes = packing.write_response(params, &response);
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
