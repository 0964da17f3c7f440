//! A payload as a run of Noise records.
//!
//! Record `k` of the message with sequence number `n` is sealed under nonce `16·n + k`. The first record begins with the
//! payload's length (4 bytes, big-endian), so that leaving records out is noticed; the others follow from their place.

use super::ChannelError;
use postcard::experimental::serialized_size;
use serde::Serialize;
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

/// A payload behind room for its length, made in one piece: large messages are neither copied once more before they are sealed, nor
/// erased in more places than need be.
pub struct Plain(Zeroizing<Vec<u8>>);

impl Plain {
    /// These bytes.
    pub fn of(payload: &[u8]) -> Self {
        Self::with(payload, 0)
    }

    /// `head`, then `value` in postcard.
    ///
    /// # Errors
    /// `TooLarge`, also for what does not serialise.
    pub fn encode(head: &[u8], value: &impl Serialize) -> Result<Self, ChannelError> {
        let size = serialized_size(value).map_err(|_| ChannelError::TooLarge)?;
        let Self(mut bytes) = Self::with(head, size);
        let whole = postcard::to_extend(value, std::mem::take(&mut *bytes)).map_err(|_| ChannelError::TooLarge)?;
        Ok(Self(Zeroizing::new(whole)))
    }

    /// With room for so many bytes more, so that they do not move.
    fn with(payload: &[u8], room: usize) -> Self {
        let mut bytes = Zeroizing::new(Vec::with_capacity(LENGTH + payload.len() + room));
        bytes.extend_from_slice(&[0; LENGTH]);
        bytes.extend_from_slice(payload);
        Self(bytes)
    }

    /// Bytes of the payload.
    pub fn len(&self) -> usize {
        self.0.len().saturating_sub(LENGTH)
    }
}

/// Appends the sealed payload to `message`.
///
/// # Errors
/// `TooLarge`.
pub fn seal(
    state: &StatelessTransportState,
    sequence: u64,
    plain: Plain,
    message: &mut Vec<u8>,
) -> Result<(), ChannelError> {
    let length = plain.len();
    if length > MAX_PAYLOAD || sequence >= MAX_SEQUENCE {
        return Err(ChannelError::TooLarge);
    }
    let Plain(mut plain) = plain;
    *plain.first_chunk_mut::<LENGTH>().ok_or(ChannelError::TooLarge)? = (length as u32).to_be_bytes();
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
