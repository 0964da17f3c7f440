//! A payload as a run of Noise records.
//!
//! Record `k` of the message with sequence number `n` is sealed under nonce `16·n + k`. The first record begins with the
//! payload's length (4 bytes, big-endian), so that leaving records out is noticed; the others follow from their place.

use super::ChannelError;
use snow::StatelessTransportState;
use zeroize::Zeroizing;

/// Plaintext bytes of a full record.
const RECORD: usize = 60_000;
/// Bytes of an authentication tag.
const TAG: usize = 16;
/// Bytes of the payload's length.
const LENGTH: usize = 4;
/// Records of one message.
const MAX_RECORDS: usize = 8;

/// The largest payload, in bytes: 479,996.
pub const MAX_PAYLOAD: usize = MAX_RECORDS * RECORD - LENGTH;
/// The largest NATS message with its header, in bytes; below 512 KB, because a larger one can close another organisation's
/// leaf connection.
pub const MAX_MESSAGE: usize = 25 + MAX_RECORDS * (RECORD + TAG);
/// Sequence numbers stay below this, so that nonces never wrap.
pub const MAX_SEQUENCE: u64 = 1 << 59;

fn nonce(sequence: u64, record: usize) -> u64 {
    (sequence << 4) | record as u64
}

/// Appends the sealed payload to `message`.
///
/// # Errors
/// `TooLarge`.
pub fn seal(
    state: &StatelessTransportState,
    sequence: u64,
    payload: &[u8],
    message: &mut Vec<u8>,
) -> Result<(), ChannelError> {
    if payload.len() > MAX_PAYLOAD || sequence >= MAX_SEQUENCE {
        return Err(ChannelError::TooLarge);
    }
    let mut plain = Zeroizing::new(Vec::with_capacity(LENGTH + payload.len()));
    plain.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    plain.extend_from_slice(payload);
    for (index, chunk) in plain.chunks(RECORD).enumerate() {
        let start = message.len();
        message.resize(start + chunk.len() + TAG, 0);
        let target = message.get_mut(start..).ok_or(ChannelError::TooLarge)?;
        state.write_message(nonce(sequence, index), chunk, target).map_err(|_| ChannelError::TooLarge)?;
    }
    Ok(())
}

/// Opens the records of one message.
///
/// # Errors
/// `TooLarge` before any cryptography; `Tampered` if anything was altered, left out, added or reordered.
pub fn open(
    state: &StatelessTransportState,
    sequence: u64,
    records: &[u8],
) -> Result<Zeroizing<Vec<u8>>, ChannelError> {
    if records.len() > MAX_RECORDS * (RECORD + TAG) || sequence >= MAX_SEQUENCE {
        return Err(ChannelError::TooLarge);
    }
    let mut plain = Zeroizing::new(vec![0u8; records.len()]);
    let mut written = 0;
    for (index, chunk) in records.chunks(RECORD + TAG).enumerate() {
        let target = plain.get_mut(written..written + chunk.len()).ok_or(ChannelError::Tampered)?;
        written += state.read_message(nonce(sequence, index), chunk, target).map_err(|_| ChannelError::Tampered)?;
    }
    plain.truncate(written);
    let length = plain.first_chunk::<LENGTH>().map(|bytes| u32::from_be_bytes(*bytes) as usize);
    if length.map(|length| length + LENGTH) != Some(plain.len()) {
        return Err(ChannelError::Tampered);
    }
    plain.drain(..LENGTH);
    Ok(plain)
}
