//! A program's working memory against its committed image.

use heap::{Batch, Change, PAGE, Page, Space, SpaceId};

const ZERO: Page = [0; PAGE];

/// Numbers of the pages in which the working memory differs from the committed image, ascending. The whole
/// memory is compared, so the cost grows with it; tracking of stores is to replace just this function.
fn dirty_pages<'a>(committed: Option<&'a Space>, working: &'a [u8]) -> impl Iterator<Item = u64> + 'a {
    let mut resident = committed.into_iter().flat_map(Space::resident).peekable();
    (0..).zip(working.chunks_exact(PAGE)).filter_map(move |(number, page)| {
        let expected = resident.next_if(|(resident, _)| *resident == number).map_or(&ZERO, |(_, page)| page);
        (page != expected).then_some(number)
    })
}

/// Adds to a batch what makes the committed image equal to the working memory.
pub(crate) fn write_changes(space: SpaceId, committed: Option<&Space>, working: &[u8], batch: &mut Batch) {
    let pages = (working.len() / PAGE) as u64;
    if committed.map_or(0, Space::pages) != pages {
        batch.changes.push(Change::Resize { space, pages });
    }
    for page in dirty_pages(committed, working) {
        let start = page as usize * PAGE;
        let mut data = Box::new(ZERO);
        data.copy_from_slice(&working[start..start + PAGE]);
        batch.changes.push(Change::Page { space, page, data });
    }
}

/// Makes the working memory equal to the committed image. False if it is longer: memories cannot shrink.
#[must_use]
pub(crate) fn restore(committed: Option<&Space>, working: &mut [u8]) -> bool {
    if working.len() as u64 != committed.map_or(0, Space::pages) * PAGE as u64 {
        return false;
    }
    let dirty: Vec<u64> = dirty_pages(committed, working).collect();
    for page in dirty {
        let start = page as usize * PAGE;
        working[start..start + PAGE].copy_from_slice(committed.map_or(&ZERO, |space| space.page(page)));
    }
    true
}

/// Copies the committed image into a memory of the same length that was just made, hence zero.
pub(crate) fn load(committed: &Space, working: &mut [u8]) {
    for (page, data) in committed.resident() {
        let start = page as usize * PAGE;
        if let Some(target) = working.get_mut(start..start + PAGE) {
            target.copy_from_slice(data);
        }
    }
}
