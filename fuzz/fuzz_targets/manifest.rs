//! A server's manifest and what the client builds from it.
#![no_main]

use heliostat::model::{Manifest, Tokenizer};
use libfuzzer_sys::fuzz_target;

/// Behind the magic and the version, which are known.
fn framed(header: &[u8], rest: &[u8]) -> Vec<u8> {
    let mut bytes = b"HSMF\x01\x00".to_vec();
    bytes.extend((header.len() as u64).to_le_bytes());
    bytes.extend(header);
    bytes.extend(rest);
    bytes
}

fn check(bytes: &[u8]) {
    if let Ok(manifest) = Manifest::from_bytes(bytes) {
        let again = Manifest::from_bytes(&manifest.to_bytes().unwrap()).unwrap();
        assert!(again == manifest);
        let _ = Tokenizer::new(&manifest.tokenizer).map(|t| t.encode("a text", None, 8, 8));
    }
}

fuzz_target!(|data: &[u8]| {
    check(data);
    if let Some((&split, rest)) = data.split_first() {
        let (header, rest) = rest.split_at(usize::from(split) * rest.len() / 256);
        check(&framed(header, rest));
    }
});
