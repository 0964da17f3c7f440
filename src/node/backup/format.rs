//! The backup file.
//!
//! ```text
//! 8  "TREFBKUP" ‖ 4 version ‖ 4 length of the header ‖ header, JSON
//! then chunks of 65,536 bytes of content, the last one shorter or full, each AES-256-GCM with a tag of 16
//! ```
//!
//! The chunks are a STREAM (Hoang, Reyhanitabar, Rogaway, Vizár 2015, as the crate `aead-stream` builds it) under a key made for
//! this file, so that none can be cut off, swapped or repeated. The key is sealed to each recipient's xkey, in the header; everything before the chunks is
//! their associated data. The content ends in the node's signature (see [`super::statement`]).

use super::BackupError;
use crate::wire::Base64;
use aead_stream::{DecryptorBE32, EncryptorBE32};
use aes_gcm::{Aes256Gcm, KeyInit};
use nkeys::XKey;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use trefoil_protocol::Secret;
use trefoil_protocol::transcript::{Tag, hash};
use zeroize::Zeroizing;

const MAGIC: &[u8; 8] = b"TREFBKUP";
const VERSION: u32 = 1;
/// Bytes of content in a chunk.
const CHUNK: usize = 65_536;
const TAG: usize = 16;
/// Longest header, bytes: one of three recipients has about 700.
const MAX_HEADER: u32 = 65_536;
/// The key is used for one file, so that the nonce need not differ.
const NONCE: [u8; 7] = [0; 7];

/// What a backup says of itself to everybody; its chunks and its signature bind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Header {
    /// Id of the store, hex.
    pub store_id: String,
    /// Whose: `node1` or `node2`.
    pub party: String,
    /// Commits that touched slots, up to this one.
    pub slots_generation: u64,
    /// Unix milliseconds.
    pub taken_at: u64,
    /// Who can open it.
    pub recipients: Vec<Recipient>,
}

/// The file's key for one recipient.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Recipient {
    /// Public xkey, `X…`.
    pub key: String,
    /// Public xkey made for this box.
    pub sender: String,
    /// The 32 bytes, sealed.
    #[serde(rename = "box")]
    pub sealed: Base64,
}

/// Everything before the chunks, and what all of them are bound to.
fn preamble(header: &Header) -> Result<(Vec<u8>, [u8; 32]), BackupError> {
    let json = serde_json::to_vec(header).map_err(|error| BackupError::Io(error.to_string()))?;
    let length = u32::try_from(json.len()).ok().filter(|length| *length <= MAX_HEADER);
    let length = length.ok_or_else(|| BackupError::Io("too many recipients".to_owned()))?;
    let bytes = [MAGIC.as_slice(), &VERSION.to_be_bytes(), &length.to_be_bytes(), &json].concat();
    let bound = hash(Tag::NODE_BACKUP_HEADER, &[&bytes]);
    Ok((bytes, bound))
}

/// Encrypts what is written to it.
pub struct Sealer<W: Write> {
    out: W,
    stream: EncryptorBE32<Aes256Gcm>,
    bound: [u8; 32],
    buffer: Vec<u8>,
}

impl<W: Write> Sealer<W> {
    /// Makes the file's key, seals it to the recipients (public xkeys), and writes the header.
    ///
    /// # Errors
    /// `Io`, also for a recipient that is no xkey.
    pub fn begin(mut out: W, mut header: Header, recipients: &[String]) -> Result<Self, BackupError> {
        let mut key = Secret::new([0; 32]);
        getrandom::fill(key.expose_mut()).map_err(|error| BackupError::Io(error.to_string()))?;
        for recipient in recipients {
            let refused = |_| BackupError::Io(format!("{recipient} is no xkey"));
            let public = XKey::from_public_key(recipient).map_err(refused)?;
            let sender = XKey::new();
            let sealed = sender.seal(key.expose(), &public).map_err(refused)?;
            let (key, sender) = (recipient.clone(), sender.public_key());
            header.recipients.push(Recipient { key, sender, sealed: Base64(sealed) });
        }
        let (bytes, bound) = preamble(&header)?;
        out.write_all(&bytes)?;
        let stream = EncryptorBE32::from_aead(Aes256Gcm::new(key.expose().into()), &NONCE.into());
        Ok(Self { out, stream, bound, buffer: Vec::with_capacity(CHUNK + TAG) })
    }

    /// What the signature covers of the header.
    pub const fn bound(&self) -> &[u8; 32] {
        &self.bound
    }

    /// Writes the last chunk.
    ///
    /// # Errors
    /// `Io`.
    pub fn finish(mut self) -> Result<W, BackupError> {
        let failed = |_| BackupError::Io("encryption failed".to_owned());
        self.stream.encrypt_last_in_place(&self.bound, &mut self.buffer).map_err(failed)?;
        self.out.write_all(&self.buffer)?;
        Ok(self.out)
    }
}

impl<W: Write> Write for Sealer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full chunk waits until more follows: the last one is sealed as the last.
        if self.buffer.len() == CHUNK {
            let sealed = self.stream.encrypt_next_in_place(&self.bound, &mut self.buffer);
            sealed.map_err(|_| io::Error::other("encryption failed"))?;
            self.out.write_all(&self.buffer)?;
            self.buffer.clear();
        }
        let (now, _) = bytes.split_at(bytes.len().min(CHUNK - self.buffer.len()));
        self.buffer.extend_from_slice(now);
        Ok(now.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Decrypts what it reads: nothing comes out that is not authentic.
pub struct Opener<R: Read> {
    input: R,
    /// `None` behind the last chunk.
    stream: Option<DecryptorBE32<Aes256Gcm>>,
    bound: [u8; 32],
    /// The chunk after the one that is given out, still encrypted.
    next: Vec<u8>,
    plain: Vec<u8>,
    given: usize,
}

/// Reads the header of a backup, which everybody can.
///
/// # Errors
/// `NotABackup`, `Version`, `Io`.
pub fn read_header(input: &mut impl Read) -> Result<Header, BackupError> {
    let mut start = [0; 16];
    fill(input, &mut start)?.then_some(()).ok_or(BackupError::NotABackup)?;
    let (magic, rest) = start.split_at(8);
    let (version, length) = rest.split_at(4);
    if magic != MAGIC {
        return Err(BackupError::NotABackup);
    }
    if version != VERSION.to_be_bytes() {
        return Err(BackupError::Version);
    }
    let length = length.try_into().map(u32::from_be_bytes).ok().filter(|length| *length <= MAX_HEADER);
    let mut json = vec![0; length.ok_or(BackupError::Altered)? as usize];
    fill(input, &mut json)?.then_some(()).ok_or(BackupError::Altered)?;
    let header: Header = serde_json::from_slice(&json).map_err(|_| BackupError::Altered)?;
    // The header is bound as it is written again: one form only.
    let (bytes, _) = preamble(&header)?;
    if bytes.get(16..) == Some(&json) { Ok(header) } else { Err(BackupError::Altered) }
}

impl<R: Read> Opener<R> {
    /// Reads the header and opens the file's key with this recipient's xkey.
    ///
    /// # Errors
    /// As [`read_header`]; `NotForThisKey`.
    pub fn begin(mut input: R, recipient: &XKey) -> Result<(Header, Self), BackupError> {
        let header = read_header(&mut input)?;
        let public = recipient.public_key();
        let Some(own) = header.recipients.iter().find(|one| one.key == public) else {
            return Err(BackupError::NotForThisKey(header.recipients.into_iter().map(|one| one.key).collect()));
        };
        let sender = XKey::from_public_key(&own.sender).map_err(|_| BackupError::Altered)?;
        let key = recipient.open(&own.sealed.0, &sender).map(Zeroizing::new).map_err(|_| BackupError::Altered)?;
        let aead = Aes256Gcm::new_from_slice(&key).map_err(|_| BackupError::Altered)?;
        let (_, bound) = preamble(&header)?;
        let stream = Some(DecryptorBE32::from_aead(aead, &NONCE.into()));
        let next = read_chunk(&mut input)?;
        Ok((header, Self { input, stream, bound, next, plain: Vec::new(), given: 0 }))
    }

    /// What the signature covers of the header.
    pub const fn bound(&self) -> &[u8; 32] {
        &self.bound
    }
}

impl<R: Read> Read for Opener<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.given == self.plain.len() {
            let Some(mut stream) = self.stream.take() else { return Ok(0) };
            self.plain = std::mem::take(&mut self.next);
            self.given = 0;
            self.next = read_chunk(&mut self.input)?;
            let altered = |_| io::Error::from(io::ErrorKind::InvalidData);
            if self.next.is_empty() {
                stream.decrypt_last_in_place(&self.bound, &mut self.plain).map_err(altered)?;
            } else {
                stream.decrypt_next_in_place(&self.bound, &mut self.plain).map_err(altered)?;
                self.stream = Some(stream);
            }
        }
        let rest = self.plain.get(self.given..).unwrap_or_default();
        let length = rest.len().min(out.len());
        let (now, _) = rest.split_at(length);
        out.split_at_mut(length).0.copy_from_slice(now);
        self.given += length;
        Ok(length)
    }
}

/// Fills the buffer; false if the input ends before.
fn fill(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match input.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// The next chunk, shorter at the end of the file, empty behind it.
fn read_chunk(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut chunk = Vec::with_capacity(CHUNK + TAG);
    input.by_ref().take((CHUNK + TAG) as u64).read_to_end(&mut chunk)?;
    Ok(chunk)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]
mod tests {
    use super::*;
    use trefoil_protocol::Party;

    fn sealed(content: &[u8], recipients: &[&XKey]) -> Vec<u8> {
        let header = Header {
            store_id: "11".repeat(32),
            party: Party::Node1.to_string(),
            slots_generation: 7,
            taken_at: 8,
            recipients: Vec::new(),
        };
        let recipients: Vec<String> = recipients.iter().map(|key| key.public_key()).collect();
        let mut sealer = Sealer::begin(Vec::new(), header, &recipients).unwrap();
        sealer.write_all(content).unwrap();
        sealer.finish().unwrap()
    }

    fn opened(file: &[u8], key: &XKey) -> Result<Vec<u8>, BackupError> {
        let mut content = Vec::new();
        Opener::begin(file, key)?.1.read_to_end(&mut content)?;
        Ok(content)
    }

    #[test]
    fn chunks_cannot_be_cut_off_swapped_repeated_or_mixed() {
        let (one, two) = (XKey::new(), XKey::new());
        for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 5] {
            let content: Vec<u8> = (0..length).map(|at| (at / 1000) as u8).collect();
            let file = sealed(&content, &[&one, &two]);
            for key in [&one, &two] {
                assert_eq!(opened(&file, key).unwrap(), content, "{length}");
            }
            let chunks = length.div_ceil(CHUNK).max(1);
            let start = file.len() - length - chunks * TAG;
            let part = |at: usize| file[start..].chunks(CHUNK + TAG).nth(at).unwrap();
            let with = |parts: &[&[u8]]| [&file[..start], &parts.concat()].concat();
            let mut bad = vec![file[..start].to_vec(), file[..file.len() - 1].to_vec()];
            if chunks > 2 {
                bad.push(with(&(0..chunks - 1).map(part).collect::<Vec<_>>()));
                bad.push(with(&[part(1), part(0)]));
                bad.push(with(&[part(0), part(0), part(1)]));
                // Of another file with the same content and for the same key.
                let other = sealed(&content, &[&one, &two]);
                bad.push([&file[..start + CHUNK + TAG], &other[start + CHUNK + TAG..]].concat());
            }
            for file in bad {
                assert!(matches!(opened(&file, &one), Err(BackupError::Altered)), "{length}");
            }
        }
        let stranger = XKey::new();
        let refused = opened(&sealed(b"content", &[&one]), &stranger);
        assert!(matches!(refused, Err(BackupError::NotForThisKey(keys)) if keys == [one.public_key()]));
    }
}
