//! The public header of a sealed correlation, which is also the associated data of its box.

use std::{io::Read, path::Path};

use super::{StoreError, StoreId};
use crate::{
    arith::codec::{CodecError, Reader, Writer},
    he::ParameterSet,
    net::session::Party,
    protocol::{SessionId, Settings},
};

const MAGIC: &[u8; 8] = b"HELIOCOR";
/// Format of the files. Version 5 has settings that know inferences prepared together.
pub(super) const VERSION: u16 = 5;
/// Magic, version, length of the rest.
const PREAMBLE: usize = 12;
/// Longest rest that is read.
const MAX_LENGTH: usize = 1024;

/// What a correlation is good for: all of it must be as it was when it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// blake3 of the manifest, which holds the digest of the weights.
    pub digest: [u8; 32],
    /// Of the parameter set, [`parameters_id`].
    pub parameters: [u8; 16],
    /// Tokens of the bucket.
    pub tokens: u32,
    /// What the parties agreed on.
    pub settings: Settings,
    /// The other party's store.
    pub peer: StoreId,
}

/// What one correlation is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// What it is good for.
    pub terms: Terms,
    /// The session that it was made in; its name.
    pub session: SessionId,
}

/// The first 16 bytes of blake3 over name, ring dimension and moduli of a parameter set.
pub fn parameters_id(set: &ParameterSet) -> [u8; 16] {
    let mut hash = blake3::Hasher::new_derive_key("heliostat parameters 1");
    hash.update(set.name().as_bytes()).update(&[0]).update(&(set.n() as u64).to_le_bytes());
    set.ring().moduli().iter().for_each(|q| {
        hash.update(&q.value().to_le_bytes());
    });
    first_half(hash.finalize())
}

/// 128 bits of a digest.
pub(super) fn first_half(hash: blake3::Hash) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&hash.as_bytes()[..16]);
    half
}

/// A header as it stands in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub binding: Binding,
    pub party: Party,
    /// Seconds since 1970 by the clock of the machine that made it.
    pub created: u64,
    /// Length of the file of tables beside it.
    pub tables: u64,
    pub nonce: [u8; 24],
}

impl Header {
    pub fn to_bytes(&self) -> Vec<u8> {
        let Terms { digest, parameters, tokens, settings, peer } = &self.binding.terms;
        let settings = settings.to_bytes();
        let mut w = Writer::new();
        w.u8(u8::from(self.party == Party::Client)).raw(digest).raw(parameters).u32(*tokens);
        w.u8(settings.len() as u8).raw(&settings).raw(peer).raw(&self.binding.session);
        w.u64(self.created).u64(self.tables).raw(&self.nonce);
        let rest = w.finish();
        let mut all = Writer::with_capacity(PREAMBLE + rest.len());
        all.raw(MAGIC).u16(VERSION).u16(rest.len() as u16).raw(&rest);
        all.finish()
    }

    /// Reads a header from the beginning of a file, and gives its bytes with it.
    ///
    /// # Errors
    /// [`StoreError::Format`] for another release's, [`StoreError::Damaged`] for what is none.
    pub fn read(from: &mut impl Read, path: &Path) -> Result<(Self, Vec<u8>), StoreError> {
        let damaged = |what: String| StoreError::Damaged { path: path.to_path_buf(), what };
        let short = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => damaged("it ends within its header".into()),
            _ => StoreError::Io { doing: "read", path: path.to_path_buf(), source: e },
        };
        let mut bytes = vec![0; PREAMBLE];
        from.read_exact(&mut bytes).map_err(short)?;
        if !bytes.starts_with(MAGIC) {
            return Err(damaged("it does not begin as a correlation does".into()));
        }
        let found = u16::from_le_bytes([bytes[8], bytes[9]]);
        if found != VERSION {
            return Err(StoreError::Format { path: path.to_path_buf(), found });
        }
        let length = usize::from(u16::from_le_bytes([bytes[10], bytes[11]]));
        if length > MAX_LENGTH {
            return Err(damaged(format!("its header announces {length} bytes")));
        }
        bytes.resize(PREAMBLE + length, 0);
        from.read_exact(&mut bytes[PREAMBLE..]).map_err(short)?;
        let header = Self::decode(&bytes[PREAMBLE..]).map_err(|e| damaged(e.to_string()))?;
        Ok((header, bytes))
    }

    fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut r = Reader::new("a correlation's header", bytes);
        let party = match r.u8("party")? {
            0 => Party::Server,
            1 => Party::Client,
            _ => return Err(CodecError::Invalid { what: "party" }),
        };
        let (digest, parameters, tokens) = (r.array("digest")?, r.array("parameters")?, r.u32("tokens")?);
        let length = usize::from(r.u8("settings")?);
        let settings = r.raw("settings", length)?;
        // Another length is another release's.
        let settings = settings.try_into().map_err(|_| CodecError::Invalid { what: "settings" })?;
        let settings = Settings::from_bytes(settings)?;
        let terms = Terms { digest, parameters, tokens, settings, peer: r.array("peer")? };
        let binding = Binding { terms, session: r.array("session")? };
        let header =
            Self { binding, party, created: r.u64("age")?, tables: r.u64("tables")?, nonce: r.array("nonce")? };
        r.finish()?;
        Ok(header)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Terms and a session for tests.
    pub fn binding() -> Binding {
        let (digest, parameters, peer) = ([7; 32], [5; 16], [3; 16]);
        let terms = Terms { digest, parameters, tokens: 8, settings: Settings::EXACT, peer };
        Binding { terms, session: [9; 16] }
    }

    #[test]
    fn headers_come_back_and_cuts_and_other_releases_are_refused() {
        let path = Path::new("x");
        let header = Header { binding: binding(), party: Party::Client, created: 77, tables: 5, nonce: [1; 24] };
        let bytes = header.to_bytes();
        let (back, raw) = Header::read(&mut &bytes[..], path).unwrap();
        assert_eq!((&back, &raw), (&header, &bytes));
        for cut in 0..bytes.len() {
            assert!(matches!(Header::read(&mut &bytes[..cut], path), Err(StoreError::Damaged { .. })), "{cut}");
        }
        let with = |at: usize, value: u8| {
            let mut altered = bytes.clone();
            altered[at] = value;
            Header::read(&mut &altered[..], path).unwrap_err()
        };
        for version in [1, 2, 3, 4, 6] {
            assert!(matches!(with(8, version), StoreError::Format { found, .. } if found == u16::from(version)));
        }
        assert!(with(8, 2).to_string().contains("format 2 and this release reads 5"));
        // Magic, length, party, length of the settings.
        for (at, value) in [(0, 0), (11, 255), (PREAMBLE, 2), (PREAMBLE + 1 + 32 + 16 + 4, 1)] {
            assert!(matches!(with(at, value), StoreError::Damaged { .. }), "{at}");
        }
    }
}
