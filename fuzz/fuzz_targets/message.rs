//! Messages of the protocol: any kind, any bytes; what is accepted has one form only.
#![no_main]

use heliostat::protocol::Message;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((kind, payload)) = data.split_first_chunk::<2>() else { return };
    for kind in [u16::from_le_bytes(*kind), u16::from(kind[0])] {
        if let Ok(message) = Message::decode(kind, payload) {
            assert_eq!(message.kind(), kind);
            assert!(message.encode() == payload, "another form of the same message was accepted");
        }
    }
});
