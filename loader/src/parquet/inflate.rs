//! What a compressed page becomes, before the arrow reader makes it.
//!
//! gzip, brotli and frames of LZ4 end where their own data say so, and the reader takes all that they give: a small page could fill the memory,
//! whatever its header says. Such pages are decompressed twice, the first time into nothing. The other codecs are given the page's length.

use std::io::{self, Read};

use flate2::read::MultiGzDecoder;
use parquet::basic::Compression;

use crate::parquet::pages::Page;

/// Bytes that brotli's reader hands over at a time.
const BUFFER: usize = 64 << 10;

/// Whether a page, whose compressed bytes are `data`, holds more than its header says.
pub(super) fn is_longer(page: &Page, data: &[u8], codec: Compression) -> bool {
    // Levels in front of a page of version 2 are never compressed.
    let levels = usize::try_from(page.levels).unwrap_or(0).min(data.len());
    let compressed = &data[levels..];
    let said = u64::try_from(page.uncompressed).unwrap_or(0).saturating_sub(levels as u64);
    match codec {
        // It may be anything, of other lengths by the codec.
        _ if page.is_stored => false,
        Compression::GZIP(_) => gives_more(MultiGzDecoder::new(compressed), said),
        Compression::BROTLI(_) => gives_more(brotli::Decompressor::new(compressed, BUFFER), said),
        // The reader tries Hadoop's blocks first, which are bounded, and then frames.
        Compression::LZ4 => gives_more(lz4_flex::frame::FrameDecoder::new(compressed), said),
        _ => false,
    }
}

/// Where the data are damaged, the reader finds that too.
fn gives_more(decoder: impl Read, said: u64) -> bool {
    io::copy(&mut decoder.take(said.saturating_add(1)), &mut io::sink()).is_ok_and(|length| length > said)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn pages_are_as_long_as_they_say() {
        const LENGTH: usize = 100_000;
        let zeros = vec![0; LENGTH];
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(&zeros).unwrap();
        let mut brotli = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 22);
        brotli.write_all(&zeros).unwrap();
        let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
        lz4.write_all(&zeros).unwrap();
        for (codec, data) in [
            (Compression::GZIP(Default::default()), gzip.finish().unwrap()),
            (Compression::BROTLI(Default::default()), brotli.into_inner()),
            (Compression::LZ4, lz4.finish().unwrap()),
        ] {
            let is_longer = |levels: usize, uncompressed: usize| {
                let data = [vec![1; levels], data.clone()].concat();
                let page = Page { levels: levels as i64, uncompressed: uncompressed as i64, ..Page::default() };
                super::is_longer(&page, &data, codec)
            };
            for levels in [0, 10] {
                assert!(!is_longer(levels, levels + LENGTH), "{codec}");
                assert!(is_longer(levels, levels + LENGTH - 1), "{codec}");
            }
            let stored = Page { uncompressed: data.len() as i64, is_stored: true, ..Page::default() };
            assert!(!super::is_longer(&stored, &data, codec), "{codec}");
            // What cannot be decompressed is the reader's to say.
            assert!(!super::is_longer(&Page { uncompressed: 1, ..Page::default() }, b"damaged", codec), "{codec}");
        }
    }
}
