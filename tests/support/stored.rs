//! What a node has stored, table by table: to be compared with what it had stored before.

use redb::backends::InMemoryBackend;
use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition, TableError, TableHandle};
use std::collections::BTreeMap;
use std::path::Path;

/// Rows of each table, by its name; with them, under "slots", the bytes of the slot file.
pub type Contents = BTreeMap<String, Vec<(Vec<u8>, Vec<u8>)>>;

/// Everything in a node's store but the audit log and its anchor. The node may run, if it writes nothing at the moment.
pub fn contents(data: &Path) -> Contents {
    let file = std::fs::read(data.join("store.redb")).unwrap();
    let copy = InMemoryBackend::new();
    copy.set_len(file.len() as u64).unwrap();
    copy.write(0, &file).unwrap();
    let database = Database::builder().create_with_backend(copy).unwrap();
    let tables = database.begin_read().unwrap();
    let mut contents = Contents::new();
    for table in tables.list_tables().unwrap() {
        let name = table.name().to_owned();
        if name != "meta" {
            contents.insert(name.clone(), rows(&tables, &name));
        }
    }
    contents.insert("slots".to_owned(), vec![(Vec::new(), std::fs::read(data.join("slots")).unwrap())]);
    contents
}

/// The rows of a table of any of the types that the store uses.
fn rows(tables: &redb::ReadTransaction, name: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    macro_rules! attempt {
        ($key:ty, $value:ty, $bytes:expr) => {
            match tables.open_table(TableDefinition::<$key, $value>::new(name)) {
                Ok(table) => {
                    let row = |(key, value): (redb::AccessGuard<'_, $key>, redb::AccessGuard<'_, $value>)| {
                        (key.value().to_vec(), $bytes(value.value()))
                    };
                    return table.iter().unwrap().map(|entry| row(entry.unwrap())).collect();
                }
                Err(TableError::TableTypeMismatch { .. }) => {}
                Err(error) => panic!("{name}: {error}"),
            }
        };
    }
    attempt!(&[u8; 16], &[u8], <[u8]>::to_vec);
    attempt!(&[u8; 48], &[u8], <[u8]>::to_vec);
    attempt!(&[u8; 48], (), |()| Vec::new());
    attempt!(&[u8; 48], u64, |value: u64| value.to_be_bytes().to_vec());
    attempt!(&[u8; 64], (), |()| Vec::new());
    attempt!(&[u8; 24], &[u8; 48], |value: &[u8; 48]| value.to_vec());
    attempt!(&[u8], &[u8], <[u8]>::to_vec);
    attempt!(&[u8], &[u8; 32], |value: &[u8; 32]| value.to_vec());
    attempt!(&[u8], (), |()| Vec::new());
    panic!("the table {name} has a type that this does not read");
}
