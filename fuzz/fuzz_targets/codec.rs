//! Any bytes read as fields, in an order that the bytes choose; packed elements must be written again to the same bytes.
#![no_main]

use heliostat::net::{Reader, Writer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut reader = Reader::new("fuzz", bytes);
    while let Ok(choice) = reader.u8("choice") {
        let result = match choice % 6 {
            0 => reader.u16("u16").map(|_| ()),
            1 => reader.u32("u32").map(|_| ()),
            2 => reader.u64("u64").map(|_| ()),
            3 => reader.bytes("bytes").map(|_| ()),
            4 => reader.count("count", 1000).map(|_| ()),
            _ => packed(&mut reader, bytes),
        };
        if result.is_err() {
            return;
        }
    }
    assert!(reader.finish().is_ok());
});

fn packed(reader: &mut Reader, bytes: &[u8]) -> Result<(), heliostat::net::CodecError> {
    let (count, bits) = (reader.u16("number")?.into(), reader.u8("bits")?.into());
    let from = bytes.len() - reader.remaining();
    let values = reader.packed("elements", count, bits)?;
    let mut writer = Writer::new();
    writer.packed("elements", &values, bits)?;
    assert_eq!(writer.finish(), bytes[from..bytes.len() - reader.remaining()]);
    Ok(())
}
