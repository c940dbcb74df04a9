//! Residues as bytes: packed at the bits of a prime, length-checked, canonical.

use super::{HeError, ParameterSet, Result};
use crate::arith::bits;

/// Bytes of `polys` polynomials of `limbs` limbs each, `None` on overflow.
pub(super) fn residues_len(params: &ParameterSet, polys: usize, limbs: usize) -> Option<usize> {
    bits::packed_len(polys.checked_mul(limbs)?.checked_mul(params.n())?, params.residue_bits())
}

/// Appends residues laid out `[poly][limb][N]`.
pub(super) fn write_residues(params: &ParameterSet, residues: &[u32], out: &mut Vec<u8>) {
    bits::pack_into(residues, params.residue_bits(), out);
}

/// Reads `polys` polynomials of the first `limbs` moduli (the special one included) and checks that every residue is canonical.
pub(super) fn read_residues(
    params: &ParameterSet,
    what: &'static str,
    bytes: &[u8],
    polys: usize,
    limbs: usize,
) -> Result<Vec<u32>> {
    let count = polys.checked_mul(limbs).and_then(|x| x.checked_mul(params.n()));
    let count = count.ok_or_else(|| HeError::wire(what, "too many polynomials"))?;
    let residues = bits::unpack_u32(bytes, params.residue_bits(), count).map_err(HeError::bits(what))?;
    for (row, residues) in residues.chunks(params.n()).enumerate() {
        let p = params.ring().moduli()[row % limbs].value();
        if let Some(bad) = residues.iter().find(|&&r| r >= p) {
            return Err(HeError::wire(what, format!("the residue {bad} is not below its modulus {p}")));
        }
    }
    Ok(residues)
}

/// Splits `len` bytes off the front.
pub(super) fn take<'a>(what: &'static str, bytes: &mut &'a [u8], len: usize) -> Result<&'a [u8]> {
    let Some((head, tail)) = bytes.split_at_checked(len) else {
        return Err(HeError::wire(what, format!("{} bytes where {len} are needed", bytes.len())));
    };
    *bytes = tail;
    Ok(head)
}

/// Splits an array off the front.
pub(super) fn take_array<const L: usize>(what: &'static str, bytes: &mut &[u8]) -> Result<[u8; L]> {
    let head = take(what, bytes, L)?;
    let mut out = [0; L];
    out.copy_from_slice(head);
    Ok(out)
}
