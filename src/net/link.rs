//! The description of a link and the timetable that follows from it.
//!
//! Each direction is a wire of its own: a frame starts when it is given in and the one before it has passed, takes
//! bytes * 8 / rate to pass, and arrives half a round trip later. Frames follow one another without waiting for arrival,
//! so that many are on the way at once. Bytes are those of the frames, without TCP and IP headers.
//! [`shape`](super::shape::shape) makes a channel keep the timetable.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::error::NetError;

/// Speed and delay of a link.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// Bits per second in each direction; `None` without limit.
    pub bits_per_second: Option<f64>,
    /// Delay there and back.
    pub round_trip: Duration,
}

impl Link {
    /// No limit and no delay.
    pub const UNLIMITED: Self = Self { bits_per_second: None, round_trip: Duration::ZERO };
    /// 1 Gbit/s and 0.5 ms.
    pub const LAN: Self = Self { bits_per_second: Some(1e9), round_trip: Duration::from_micros(500) };
    /// 100 Mbit/s and 80 ms.
    pub const WAN: Self = Self { bits_per_second: Some(1e8), round_trip: Duration::from_millis(80) };

    /// Time that `bytes` bytes take to pass into the wire.
    pub fn serialisation(&self, bytes: u64) -> Duration {
        let seconds = self.bits_per_second.map_or(0.0, |rate| bytes as f64 * 8.0 / rate);
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }
}

impl FromStr for Link {
    type Err = NetError;

    /// `unlimited`, `lan`, `wan` or RATE,DELAY: a rate is `unlimited` or a number with `bps`, `kbps`, `mbps` or `gbps`
    /// (powers of 1000, at least 1 bit/s), a delay a number with `us`, `ms` or `s` (at most 60 s), in either case.
    fn from_str(given: &str) -> Result<Self, NetError> {
        let bad = |problem| NetError::BadLink { given: given.to_owned(), problem };
        let text = given.trim().to_ascii_lowercase();
        match text.as_str() {
            "unlimited" => return Ok(Self::UNLIMITED),
            "lan" => return Ok(Self::LAN),
            "wan" => return Ok(Self::WAN),
            _ => {}
        }
        let (rate, delay) = text.split_once(',').ok_or(bad("the comma is missing"))?;
        let bits_per_second = match rate.trim() {
            "unlimited" => None,
            rate => {
                let units = [("gbps", 1e9), ("mbps", 1e6), ("kbps", 1e3), ("bps", 1.0)];
                let rate = number(rate, &units).ok_or(bad("the rate is a number with bps, kbps, mbps or gbps"))?;
                if rate < 1.0 {
                    return Err(bad("the rate is below 1 bps"));
                }
                Some(rate)
            }
        };
        let units = [("us", 1e-6), ("ms", 1e-3), ("s", 1.0)];
        let delay = number(delay.trim(), &units).ok_or(bad("the delay is a number with us, ms or s"))?;
        if delay > 60.0 {
            return Err(bad("the delay is over 60 s"));
        }
        let round_trip = Duration::try_from_secs_f64(delay).map_err(|_| bad("the delay is out of range"))?;
        Ok(Self { bits_per_second, round_trip })
    }
}

impl fmt::Display for Link {
    /// `unlimited`, or RATE,DELAY in the form that [`Link::from_str`] reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bits_per_second {
            None if self.round_trip.is_zero() => return f.write_str("unlimited"),
            None => f.write_str("unlimited")?,
            Some(rate) if rate >= 1e9 => write!(f, "{}gbps", rate / 1e9)?,
            Some(rate) if rate >= 1e6 => write!(f, "{}mbps", rate / 1e6)?,
            Some(rate) if rate >= 1e3 => write!(f, "{}kbps", rate / 1e3)?,
            Some(rate) => write!(f, "{rate}bps")?,
        }
        write!(f, ",{}ms", self.round_trip.as_secs_f64() * 1e3)
    }
}

/// A finite, non-negative decimal number with one of the units.
fn number(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let (digits, factor) = units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))?;
    let plain = digits.trim();
    if plain.is_empty() || !plain.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return None;
    }
    plain.parse().ok().map(|number: f64| number * factor).filter(|number| number.is_finite())
}

/// The timetable of one direction.
#[derive(Debug)]
pub struct Wire {
    link: Link,
    /// When the last frame has passed into the wire.
    free: Duration,
}

/// When one frame passes a [`Wire`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passage {
    /// Its last bit enters.
    pub sent: Duration,
    /// Its last bit arrives.
    pub arrives: Duration,
}

impl Wire {
    /// An idle wire.
    pub fn new(link: Link) -> Self {
        Self { link, free: Duration::ZERO }
    }

    /// Books a frame of `bytes` bytes that is given in at `now`.
    pub fn book(&mut self, now: Duration, bytes: u64) -> Passage {
        self.free = self.free.max(now).saturating_add(self.link.serialisation(bytes));
        Passage { sent: self.free, arrives: self.free.saturating_add(self.link.round_trip / 2) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn links_are_read_and_written() {
        for (text, link) in [
            ("unlimited", Link::UNLIMITED),
            ("lan", Link::LAN),
            ("1gbps,0.5ms", Link::LAN),
            ("1000Mbps,500us", Link::LAN),
            (" WAN ", Link::WAN),
            ("100mbps, 80ms", Link::WAN),
            ("100000 kbps,0.08s", Link::WAN),
            ("unlimited,0ms", Link::UNLIMITED),
            ("9600bps,0s", Link { bits_per_second: Some(9600.0), round_trip: Duration::ZERO }),
            ("unlimited,80ms", Link { bits_per_second: None, ..Link::WAN }),
        ] {
            assert_eq!(text.parse::<Link>().unwrap(), link, "{text}");
            assert_eq!(link.to_string().parse::<Link>().unwrap(), link, "{link}");
        }
        assert_eq!(Link::LAN.to_string(), "1gbps,0.5ms");
        assert_eq!(Link::WAN.to_string(), "100mbps,80ms");
        assert_eq!(Link::UNLIMITED.to_string(), "unlimited");
    }

    #[test]
    fn nonsense_is_refused_with_a_sentence() {
        for text in [
            "",
            "fast",
            "1gbps",
            "1gbps,",
            ",1ms",
            "0bps,1ms",
            "-1mbps,1ms",
            "1e9bps,1ms",
            "nanbps,1ms",
            "infbps,1ms",
            "1gbps,1",
            "1gbps,-1ms",
            "1gbps,61s",
            "1gbps,1ms,1ms",
            "1tbps,1ms",
            "1.2.3mbps,1ms",
            ".mbps,1ms",
        ] {
            let error = text.parse::<Link>().unwrap_err();
            assert!(matches!(error, NetError::BadLink { .. }), "{text}");
            assert!(error.to_string().contains("RATE,DELAY"));
        }
    }

    #[test]
    fn frames_follow_one_another_and_arrive_half_a_round_trip_later() {
        let ms = Duration::from_millis;
        // 100 Mbit/s: 125 000 bytes pass in 10 ms.
        let mut wire = Wire::new(Link::WAN);
        assert_eq!(wire.book(ms(0), 125_000), Passage { sent: ms(10), arrives: ms(50) });
        // Given in while the first passes: it queues, and does not wait for the first to arrive.
        assert_eq!(wire.book(ms(1), 125_000), Passage { sent: ms(20), arrives: ms(60) });
        assert_eq!(wire.book(ms(20), 0), Passage { sent: ms(20), arrives: ms(60) });
        // Given in on an idle wire.
        assert_eq!(wire.book(ms(100), 12_500), Passage { sent: ms(101), arrives: ms(141) });
        let mut delay_only = Wire::new(Link { bits_per_second: None, ..Link::WAN });
        assert_eq!(delay_only.book(ms(3), u64::MAX), Passage { sent: ms(3), arrives: ms(43) });
    }

    proptest! {
        #[test]
        fn a_wire_keeps_order_and_never_exceeds_its_rate(frames in proptest::collection::vec((0u64..1000, 0u64..100_000), 1..50)) {
            let link = Link { bits_per_second: Some(1e6), round_trip: Duration::from_millis(7) };
            let mut wire = Wire::new(link);
            let (mut now, mut last) = (Duration::ZERO, Duration::ZERO);
            let mut passed = Duration::ZERO;
            for (pause, bytes) in frames {
                now += Duration::from_millis(pause);
                let passage = wire.book(now, bytes);
                passed += link.serialisation(bytes);
                prop_assert!(passage.sent >= last + link.serialisation(bytes));
                prop_assert!(passage.sent >= now + link.serialisation(bytes) && passage.sent >= passed);
                prop_assert!(passage.sent <= now + passed);
                prop_assert_eq!(passage.arrives, passage.sent + Duration::from_micros(3500));
                last = passage.sent;
            }
        }
    }
}
