//! Any bytes read as a stream of frames: what is accepted must be written again to the same bytes. Then the same bytes as
//! one frame's fields, written, altered and read: since a fuzzer does not guess checksums, this is how it gets past them.
#![no_main]

use heliostat::net::Frame;
use heliostat::net::frame::{FrameDecoder, FrameEncoder};
use libfuzzer_sys::fuzz_target;

const LIMIT: u64 = 1 << 16;

fuzz_target!(|bytes: &[u8]| {
    let (mut decoder, mut input) = (FrameDecoder::new(LIMIT), bytes);
    let mut frames = Vec::new();
    while let Ok(frame) = decoder.read(&mut input) {
        frames.push(frame);
    }
    assert!(bytes.starts_with(&written(&frames)));

    let Some((&[lane, kind, at_low, at_high, flip, cut], payload)) = bytes.split_first_chunk() else { return };
    if payload.len() as u64 > LIMIT {
        return;
    }
    let frame = Frame { lane, kind: kind.into(), session: [lane; 16], payload: payload.to_vec() };
    let mut wire = written(std::slice::from_ref(&frame));
    let at = usize::from(u16::from_le_bytes([at_low, at_high])) % wire.len();
    wire[at] ^= flip;
    wire.truncate(wire.len() - usize::from(cut).min(wire.len() - 1));
    let read = FrameDecoder::new(LIMIT).read(&mut &wire[..]);
    assert_eq!(read.ok(), (flip == 0 && cut == 0).then_some(frame));
});

fn written(frames: &[Frame]) -> Vec<u8> {
    let (mut encoder, mut wire) = (FrameEncoder::new(LIMIT), Vec::new());
    for frame in frames {
        encoder.write(frame, &mut wire).expect("a frame within the limit");
    }
    wire
}
