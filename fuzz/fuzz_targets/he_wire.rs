//! Wire forms of homomorphic encryption: keys, ciphertexts, matrices and responses.
#![no_main]

use std::sync::LazyLock;

use heliostat::{
    arith::ShareModulus,
    he::{GaloisKeys, MATMUL_8192, ParameterSet, PublicKey, SeededCiphertexts},
    packing::{CoefficientPacking, CostWeights, EncryptedMatrix, MatmulSpec, OperandBound, Packing},
};
use libfuzzer_sys::fuzz_target;

static PARAMS: LazyLock<ParameterSet> = LazyLock::new(|| ParameterSet::new(MATMUL_8192).unwrap());

static PACKING: LazyLock<CoefficientPacking> = LazyLock::new(|| {
    let t = ShareModulus::pow2(32).unwrap();
    let operand = OperandBound::Weights { max_abs: 2047 };
    let spec = MatmulSpec { t, heads: 1, rows: 8, inner: vec![16], cols: 16, operand };
    CoefficientPacking::choose(&PARAMS, &spec, &CostWeights { max_block: 4, ..CostWeights::default() }).unwrap()
});

/// Bytes of the right length, so that the checks behind the length are reached: the fuzzer's, then zeros.
fn fit(bytes: &[u8], len: usize) -> Vec<u8> {
    let mut out = bytes[..bytes.len().min(len)].to_vec();
    out.resize(len, 0);
    out
}

fuzz_target!(|data: &[u8]| {
    let (params, packing) = (&*PARAMS, &*PACKING);
    let Some((&choice, bytes)) = data.split_first() else { return };
    let layout = &packing.inputs()[0];
    let right_length = match choice & 7 {
        0 => SeededCiphertexts::byte_len(params, 1),
        1 => GaloisKeys::byte_len(params, 2),
        2 => layout.byte_len(params),
        3 => Some(packing.counts().bytes_down as usize),
        // A public key: a seed and one polynomial.
        _ => Some(32 + params.limbs() * params.n() * params.residue_bits() as usize / 8),
    };
    let bytes = match right_length {
        Some(len) if choice & 0x80 == 0 => fit(bytes, len),
        _ => bytes.to_vec(),
    };
    // Whatever is accepted must have this form and no other.
    let form = match choice & 7 {
        0 => SeededCiphertexts::from_bytes(params, 1, &bytes).map(|x| x.to_bytes(params)),
        1 => GaloisKeys::from_bytes(params, 2, &bytes).map(|x| x.to_bytes(params)),
        2 => EncryptedMatrix::from_bytes(params, layout, &bytes).map(|x| x.to_bytes(params)),
        3 => packing.read_response(params, &bytes).map(|x| packing.write_response(&x)),
        _ => PublicKey::from_bytes(params, &bytes).map(|x| x.to_bytes(params)),
    };
    if let Ok(form) = form {
        assert!(form == bytes, "another form of the same thing was accepted");
    }
});
