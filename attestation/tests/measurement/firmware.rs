//! Firmware shaped like OVMF, made up.

fn guid(text: &str) -> [u8; 16] {
    let mut guid: [u8; 16] = hex::decode(text.replace('-', "")).unwrap().try_into().unwrap();
    guid[..4].reverse();
    guid[4..6].reverse();
    guid[6..8].reverse();
    guid
}

const HASH_TABLE: &str = "7255371f-3a3b-4b04-927b-1da6efa8d454";
const METADATA: &str = "dc886566-984a-4798-a75e-5585a7bf67cc";
const RESET_BLOCK: &str = "00f771de-1a7e-4fcb-890e-68c77e2fb44e";
const TABLE: &str = "96b582de-1fb2-45f7-baea-a366c55a082d";

/// Address, size and kind of sections as OVMF has them.
pub(crate) const SECTIONS: &[[u32; 3]] = &[
    [0x80_0000, 0x9000, 1],
    [0x80_d000, 0x1000, 2],
    [0x80_e000, 0x1000, 3],
    [0x80_f000, 0x1000, 4],
    [0x81_1000, 0xf000, 1],
    [0x81_0000, 0x1000, 0x10],
];

/// What a firmware says about itself.
#[derive(Debug, Clone)]
pub(crate) struct Shape<'a> {
    pub(crate) sections: &'a [[u32; 3]],
    pub(crate) hash_table: Option<u32>,
    pub(crate) reset_eip: u32,
    /// Where the metadata stands.
    pub(crate) metadata: usize,
}

/// Puts SEV metadata and, 32 bytes before the end, the GUID table into some pages.
pub(crate) fn shape(mut pages: Vec<u8>, shape: &Shape<'_>) -> Vec<u8> {
    let mut metadata = b"ASEV".to_vec();
    let count = shape.sections.len() as u32;
    for word in [16 + 12 * count, 1, count].iter().chain(shape.sections.as_flattened()) {
        metadata.extend(word.to_le_bytes());
    }
    pages[shape.metadata..][..metadata.len()].copy_from_slice(&metadata);
    let mut table = Vec::new();
    let entry = |table: &mut Vec<u8>, words: &[u32], name: &str| {
        words.iter().for_each(|word| table.extend(word.to_le_bytes()));
        table.extend((words.len() as u16 * 4 + 18).to_le_bytes());
        table.extend(guid(name));
    };
    if let Some(gpa) = shape.hash_table {
        entry(&mut table, &[gpa, 0x400], HASH_TABLE);
    }
    entry(&mut table, &[(pages.len() - shape.metadata) as u32], METADATA);
    entry(&mut table, &[shape.reset_eip], RESET_BLOCK);
    table.extend((table.len() as u16 + 18).to_le_bytes());
    table.extend(guid(TABLE));
    let end = pages.len() - 32;
    pages[end - table.len()..end].copy_from_slice(&table);
    pages
}

/// Three pages with metadata at 0x1000.
pub(crate) fn firmware(sections: &[[u32; 3]], hash_table: Option<u32>) -> Vec<u8> {
    let pages = (0..3 * 4096_usize).map(|i| (i * 7 + i / 256) as u8).collect();
    shape(pages, &Shape { sections, hash_table, reset_eip: 0x80_b004, metadata: 0x1000 })
}

/// The firmware above with sections as OVMF has them.
pub(crate) fn usual() -> Vec<u8> {
    firmware(SECTIONS, Some(0x81_0c00))
}
