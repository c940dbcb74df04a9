//! Division by a power of two and change of ring, for values of known sign.
//!
//! With `-2^(l-2) <= x < 2^(l-2)` the sum `u = x + 2^(l-2)` has its highest bit clear, so its shares wrap around the ring
//! exactly if one of them has its highest bit set: `w = a + b - a b`, one COT (Rathee et al., "SiRnn", S&P 2021; Huang et
//! al., "Cheetah", USENIX Security 2022). Then `u >> s = (u_C >> s) + (u_S >> s) - 2^(l-s) w`, less the carry of the dropped
//! bits, which is ignored: one unit is added for it, and the result is `x / 2^s` rounded down or up, at random with the
//! right mean if the shares are random. Of `w` only the bits that the output ring has above `l - s` matter; with none, the
//! step is local.

use super::SharedError;
use super::cot::Batch;
use super::fields::{Fields, generate, low_mask};
use super::meter::Cost;
use super::party::{Party, Role, Shares};

const WRAP: &str = "the wrap bit";

/// `x / 2^shift` from a ring of `input` bits to one of `output` bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncate {
    input: u32,
    output: u32,
    shift: u32,
}

impl Truncate {
    /// # Errors
    /// If a ring is not of 1 to 64 bits, or fewer than two bits would be left of the input.
    pub(super) fn new(shift: u32, input: u32, output: u32) -> Result<Self, SharedError> {
        if !(1..=64).contains(&input) || !(1..=64).contains(&output) || shift.saturating_add(2) > input {
            return Err(SharedError::Range { what: "bits dropped by a truncation", value: shift.into() });
        }
        Ok(Self { input, output, shift })
    }

    /// Bits of the wrap that are needed; 0 if each party truncates alone.
    fn wrap_bits(self) -> u32 {
        self.output.saturating_sub(self.input - self.shift)
    }

    pub(super) fn cost(self, count: usize, cost: &mut Cost) -> Result<(), SharedError> {
        match self.wrap_bits() {
            0 => Ok(()),
            bits => cost.products(&[], &[(count, bits)]),
        }
    }

    /// This party's shares of the result, `output` bits.
    pub(super) async fn run(self, party: &mut Party, x: &[u64]) -> Result<Shares, SharedError> {
        let offset = if self.wrap_bits() == 0 { 0 } else { party.constant(self.offset()) };
        let lifted = generate(x.len(), |i| x[i].wrapping_add(offset) & low_mask(self.input));
        let wraps = wrap(party, self.input, self.wrap_bits(), &lifted).await?;
        let constant = party.constant(self.constant());
        Ok(generate(x.len(), |i| {
            let wrap = wraps.as_ref().map_or(0, |w| w[i]);
            self.assemble(lifted[i] >> self.shift, wrap).wrapping_add(constant) & low_mask(self.output)
        }))
    }

    /// What both parties' shares add up to.
    pub(super) fn simulate(self, client: u64, server: u64) -> u64 {
        let offset = if self.wrap_bits() == 0 { 0 } else { self.offset() };
        let server = server.wrapping_add(offset) & low_mask(self.input);
        let client = client & low_mask(self.input);
        let wrap = ((client | server) >> (self.input - 1)) & 1;
        let wrap = if self.wrap_bits() == 0 { 0 } else { wrap };
        let kept = (client >> self.shift).wrapping_add(server >> self.shift);
        self.assemble(kept, wrap).wrapping_add(self.constant()) & low_mask(self.output)
    }

    fn offset(self) -> u64 {
        1 << (self.input - 2)
    }

    /// One unit for the carry, and the offset taken back.
    fn constant(self) -> u64 {
        let unit = u64::from(self.shift > 0);
        if self.wrap_bits() == 0 { unit } else { unit.wrapping_sub(self.offset() >> self.shift) }
    }

    fn assemble(self, kept: u64, wrap: u64) -> u64 {
        // With a shift of 0 in a ring of 64 bits there is nothing above.
        kept.wrapping_sub(wrap.checked_shl(self.input - self.shift).unwrap_or(0))
    }
}

/// Additive shares modulo `2^bits` of the wrap of shares modulo `2^ring` of values with a clear highest bit; nothing for
/// 0 bits. The shares must be reduced.
pub(super) async fn wrap(party: &mut Party, ring: u32, bits: u32, x: &[u64]) -> Result<Option<Shares>, SharedError> {
    if bits == 0 {
        return Ok(None);
    }
    let fields = Fields::ring(bits)?;
    let highest = generate(x.len(), |i| (x[i] >> (ring - 1)) & 1);
    let batch = [Batch::new(fields, &highest)];
    let (sent, received) = match party.role {
        Role::Client => party.products(&[], &batch).await?,
        Role::Server => party.products(&batch, &[]).await?,
    };
    let product = sent.first().or(received.first()).ok_or(SharedError::Internal { what: WRAP })?;
    Ok(Some(generate(x.len(), |i| fields.sub(highest[i], product[i]))))
}

/// A value in `[0, 2^(from-1))` to a wider ring, exactly.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extend {
    pub(super) from: u32,
    pub(super) to: u32,
}

impl Extend {
    pub(super) fn cost(self, count: usize, cost: &mut Cost) -> Result<(), SharedError> {
        match self.to.saturating_sub(self.from) {
            0 => Ok(()),
            bits => cost.products(&[], &[(count, bits)]),
        }
    }

    pub(super) async fn run(self, party: &mut Party, x: &[u64]) -> Result<Shares, SharedError> {
        let wraps = wrap(party, self.from, self.to.saturating_sub(self.from), x).await?;
        Ok(generate(x.len(), |i| {
            let wrap = wraps.as_ref().map_or(0, |w| w[i]);
            x[i].wrapping_sub(wrap.checked_shl(self.from).unwrap_or(0)) & low_mask(self.to)
        }))
    }
}
