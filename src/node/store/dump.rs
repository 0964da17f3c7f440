//! Every row of the store as a stream of bytes, as of one moment: what a backup holds. The slot file is no part of it, so that no
//! backup brings a share back whose data key was destroyed after it.
//!
//! ```text
//! table     "T" ‖ length 1 ‖ name
//! row       "R" ‖ length 4 ‖ key ‖ length 4 ‖ value          (of the table named last)
//! end       "E"
//! ```

use super::StoreError;
use super::quarantine::DOUBTS;
use super::recoveries::RECOVERIES;
use super::registry::REGISTRY;
use super::rekey::UNFINISHED;
use super::rows::{
    ATTEMPTS, BURNED, CHARGED, DISCARDED, GUESSES, JOBS, JOBS_BY_EXPIRY, KEYS, META, ORDERS, OWNED, RECORDS,
    REPLACEMENTS,
};
use super::undecided::UNDECIDED;
use redb::{
    Key, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, TableError, TableHandle, Value,
    WriteTransaction,
};
use std::io::{ErrorKind, Read, Write};

/// Longest key or value, bytes: records are about 100 KB.
const MAX_FIELD: usize = 16 << 20;

const TABLE: u8 = b'T';
const ROW: u8 = b'R';
const END: u8 = b'E';

/// Takes the rows of a stream apart.
trait Sink {
    /// A table begins, empty; whether there is such a table.
    fn table(&mut self, name: &str) -> Result<bool, StoreError>;
    /// A row of it.
    fn row(&mut self, name: &str, key: &[u8], value: &[u8]) -> Result<(), StoreError>;
}

/// Only the form is looked at.
struct Nothing;

impl Sink for Nothing {
    fn table(&mut self, _: &str) -> Result<bool, StoreError> {
        Ok(true)
    }
    fn row(&mut self, _: &str, _: &[u8], _: &[u8]) -> Result<(), StoreError> {
        Ok(())
    }
}

fn malformed() -> StoreError {
    StoreError::Corrupt("the rows of the backup do not parse")
}

fn io(error: std::io::Error) -> StoreError {
    match error.kind() {
        ErrorKind::InvalidData | ErrorKind::UnexpectedEof => malformed(),
        _ => StoreError::Failed(error.to_string()),
    }
}

macro_rules! tables {
    ($($table:ident),* $(,)?) => {
        fn is_known(name: &str) -> bool {
            [$($table.name()),*].contains(&name)
        }

        fn write_all(tx: &ReadTransaction, out: &mut dyn Write) -> Result<(), StoreError> {
            $(write_table(tx, $table, out)?;)*
            Ok(())
        }

        impl Sink for &WriteTransaction {
            fn table(&mut self, name: &str) -> Result<bool, StoreError> {
                $(if name == $table.name() {
                    self.open_table($table)?;
                    return Ok(true);
                })*
                Ok(false)
            }
            fn row(&mut self, name: &str, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
                $(if name == $table.name() {
                    return insert(self, $table, key, value);
                })*
                Err(malformed())
            }
        }
    };
}

tables!(
    META,
    KEYS,
    ATTEMPTS,
    OWNED,
    RECORDS,
    REPLACEMENTS,
    DISCARDED,
    JOBS,
    CHARGED,
    JOBS_BY_EXPIRY,
    GUESSES,
    ORDERS,
    BURNED,
    DOUBTS,
    UNDECIDED,
    REGISTRY,
    RECOVERIES,
);

/// The whole store as of one moment, whatever is written meanwhile.
pub struct Snapshot {
    tx: ReadTransaction,
    /// The store's id.
    pub store_id: [u8; 32],
    /// Commits that touched slots, up to this one.
    pub generation: u64,
}

impl Snapshot {
    /// The store as it is now.
    pub(super) fn of(db: &impl ReadableDatabase) -> Result<Self, StoreError> {
        let tx = db.begin_read()?;
        let meta = tx.open_table(META)?;
        if meta.get(UNFINISHED)?.is_some() {
            return Err(StoreError::Mismatch(
                "a change of the master key was cut off: the node finishes it when it starts",
            ));
        }
        let store_id = meta.get("store-id")?.and_then(|id| id.value().try_into().ok());
        let generation = meta.get("slots-generation")?.and_then(|bytes| bytes.value().try_into().ok());
        let store_id = store_id.ok_or(StoreError::Corrupt("the store's id"))?;
        drop(meta);
        Ok(Self { tx, store_id, generation: generation.map_or(0, u64::from_be_bytes) })
    }

    /// Writes every row.
    ///
    /// # Errors
    /// `Failed`, also for a table that is not in the list above: a backup without it would be no backup.
    pub fn write(&self, out: &mut dyn Write) -> Result<(), StoreError> {
        for table in self.tx.list_tables()? {
            if !is_known(table.name()) {
                return Err(StoreError::Failed(format!("backups do not know the table {}", table.name())));
            }
        }
        write_all(&self.tx, out)?;
        out.write_all(&[END]).map_err(io)
    }
}

fn write_table<K: Key + 'static, V: Value + 'static>(
    tx: &ReadTransaction,
    definition: TableDefinition<'_, K, V>,
    out: &mut dyn Write,
) -> Result<(), StoreError> {
    let table = match tx.open_table(definition) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(()),
        table => table?,
    };
    let name = definition.name();
    let length = u8::try_from(name.len()).map_err(|_| malformed())?;
    out.write_all(&[&[TABLE, length], name.as_bytes()].concat()).map_err(io)?;
    for entry in table.iter()? {
        let (key, value) = entry?;
        let (key, value) = (key.value(), value.value());
        let (key, value) = (K::as_bytes(&key), V::as_bytes(&value));
        out.write_all(&[ROW]).map_err(io)?;
        for field in [key.as_ref(), value.as_ref()] {
            let length = u32::try_from(field.len()).map_err(|_| malformed())?;
            out.write_all(&length.to_be_bytes()).map_err(io)?;
            out.write_all(field).map_err(io)?;
        }
    }
    Ok(())
}

fn insert<K: Key + 'static, V: Value + 'static>(
    tx: &WriteTransaction,
    definition: TableDefinition<'_, K, V>,
    key: &[u8],
    value: &[u8],
) -> Result<(), StoreError> {
    let fits = |width: Option<usize>, bytes: &[u8]| width.is_none_or(|width| width == bytes.len());
    let is_text = K::type_name() == <&str as Value>::type_name();
    if !fits(K::fixed_width(), key) || !fits(V::fixed_width(), value) || (is_text && std::str::from_utf8(key).is_err())
    {
        return Err(malformed());
    }
    tx.open_table(definition)?.insert(K::from_bytes(key), V::from_bytes(value))?;
    Ok(())
}

/// Reads a stream to its end without keeping anything.
///
/// # Errors
/// `Corrupt` if it does not parse, `Failed` if it cannot be read.
pub fn skim(input: &mut dyn Read) -> Result<(), StoreError> {
    read(input, &mut Nothing)
}

/// Puts every row of a stream into empty tables.
///
/// # Errors
/// `Corrupt` if it does not parse; `Mismatch` for a table of another version; `Failed`.
pub fn load(mut tx: &WriteTransaction, input: &mut dyn Read) -> Result<(), StoreError> {
    read(input, &mut tx)
}

fn read(input: &mut dyn Read, sink: &mut impl Sink) -> Result<(), StoreError> {
    let mut name = String::new();
    loop {
        match read_array::<1>(input)? {
            [TABLE] => {
                let [length] = read_array::<1>(input)?;
                name = String::from_utf8(read_bytes(input, usize::from(length))?).map_err(|_| malformed())?;
                if !sink.table(&name)? {
                    return Err(StoreError::Mismatch("the backup has tables of another version"));
                }
            }
            [ROW] => {
                let key = read_field(input)?;
                let value = read_field(input)?;
                sink.row(&name, &key, &value)?;
            }
            [END] => return Ok(()),
            _ => return Err(malformed()),
        }
    }
}

fn read_array<const N: usize>(input: &mut dyn Read) -> Result<[u8; N], StoreError> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes).map_err(io)?;
    Ok(bytes)
}

fn read_field(input: &mut dyn Read) -> Result<Vec<u8>, StoreError> {
    let length = u32::from_be_bytes(read_array(input)?);
    read_bytes(input, length as usize)
}

fn read_bytes(input: &mut dyn Read, length: usize) -> Result<Vec<u8>, StoreError> {
    if length > MAX_FIELD {
        return Err(malformed());
    }
    let mut bytes = vec![0; length];
    input.read_exact(&mut bytes).map_err(io)?;
    Ok(bytes)
}
