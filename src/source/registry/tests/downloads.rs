//! Large blobs in parts, over several connections.

use super::*;
use crate::source::registry::mirrors::Abilities;

/// As [`bench`], with ranges beyond 40,000 bytes split, and `lanes` extra connections.
fn cutting(server: &Scripted, lanes: u32) -> Bench {
    let mut bench = bench(server, None);
    let source = Arc::get_mut(&mut bench.source).unwrap();
    source.hosts = Arc::new(Hosts::new(Vec::new(), None));
    let client = Arc::get_mut(&mut source.client).unwrap();
    client.cut = Cut { alone: 20_000, beside: 7_000, near: 3_000 };
    client.lanes = Mutex::new(Lanes::default());
    client.lanes.lock().unwrap().allow(lanes);
    let host = Host::new(Arc::clone(&source.client), Abilities::ALL, None);
    source.hosts = Arc::new(Hosts::new(vec![host], None));
    bench
}

/// First byte and end of every requested range, sorted.
fn requested_ranges(server: &Scripted) -> Vec<(usize, usize)> {
    let mut ranges: Vec<_> = server.requests().iter().map(|request| request.range().unwrap()).collect();
    ranges.sort_unstable();
    ranges.into_iter().map(|(first, last)| (first, last + 1)).collect()
}

#[tokio::test]
async fn a_large_blob_comes_in_parts_and_no_byte_twice() {
    for lanes in [0, 1, 4] {
        let bytes = content();
        let served = bytes.clone();
        let server = Scripted::start(move |request| serve(request, &served));
        let bench = cutting(&server, lanes);
        assert_eq!(read(&bench, &blob(&bytes), 5..200_000).await.unwrap(), bytes[5..], "{lanes}");
        let ranges = requested_ranges(&server);
        assert!(ranges.windows(2).all(|pair| pair[0].1 == pair[1].0), "{lanes}: {ranges:?}");
        let first = if lanes == 0 { 20_005 } else { 7_005 };
        assert_eq!((ranges[0], ranges.last().unwrap().1), ((5, first), 200_000));
        assert_eq!(bench.source.stats().bytes_received, 199_995);
        assert_eq!(ranges.len(), if lanes == 0 { 10 } else { 29 }, "{lanes}: {ranges:?}");
    }
}

#[tokio::test]
async fn a_server_that_begins_to_ignore_ranges_sends_the_rest_as_one() {
    for lanes in [0, 4] {
        let bytes = content();
        let served = bytes.clone();
        let count = AtomicUsize::new(0);
        let server = Scripted::start(move |request| match count.fetch_add(1, Ordering::Relaxed) {
            0..2 => serve(request, &served),
            _ => Response::new(200, &[], &served),
        });
        let bench = cutting(&server, lanes);
        assert_eq!(read(&bench, &blob(&bytes), 5..200_000).await.unwrap(), bytes[5..], "{lanes}");
        // Two parts, those in flight when the first response ignored its range, and the rest.
        let ranges = requested_ranges(&server);
        assert!(ranges.len() <= if lanes == 0 { 4 } else { 12 }, "{lanes}: {ranges:?}");
        assert_eq!(ranges.last().unwrap().1, 200_000);
    }
}

/// The first part stalls until its rest was requested elsewhere; then it continues to `until`, and ends.
async fn a_slow_first_part(until: usize) -> (Bench, Vec<(usize, usize)>) {
    let bytes = content();
    let served = bytes.clone();
    let (asked_elsewhere, asks) = std::sync::mpsc::channel();
    let asks = Arc::new(Mutex::new(asks));
    let server = Scripted::start(move |request| match request.range() {
        Some((0, last)) => {
            let range = format!("bytes 0-{last}/{}", served.len());
            let length = (last + 1).to_string();
            let head = Response::head(206, &[("Content-Range", &range), ("Content-Length", &length)]);
            let asks = asks.clone();
            let wait = move || {
                for _ in 0..2 {
                    asks.lock().unwrap().recv_timeout(Duration::from_secs(20)).unwrap();
                }
            };
            head.and(&served[..1000]).then_last(wait, &served[1000..until])
        }
        range => {
            if range.unwrap().0 < 20_000 {
                asked_elsewhere.send(()).unwrap();
            }
            serve(request, &served)
        }
    });
    let bench = cutting(&server, 0);
    let mut stream = bench.source.stream(&blob(&bytes), BlobOffset(0)..BlobOffset(200_000)).await.unwrap();
    let mut got = Vec::new();
    while let Some(piece) = stream.next().await {
        got.extend_from_slice(&piece.unwrap().into_unverified());
        if got.len() == 1000 {
            bench.source.client.lanes.lock().unwrap().allow(2);
        }
    }
    assert!(got == bytes);
    (bench, requested_ranges(&server))
}

#[tokio::test]
async fn a_long_part_is_shortened_and_its_rest_asked_for_once() {
    let (_, ranges) = a_slow_first_part(20_000).await;
    assert_eq!(ranges[..4], [(0, 20_000), (8_000, 15_000), (15_000, 20_000), (20_000, 27_000)]);
    assert!(ranges[1..].windows(2).all(|pair| pair[0].1 == pair[1].0), "{ranges:?}");
}

#[tokio::test]
async fn a_truncated_shortened_part_resumes_where_it_ended() {
    let (bench, ranges) = a_slow_first_part(3_000).await;
    assert_eq!(bench.source.stats().resumptions, 1);
    assert_eq!(ranges[..3], [(0, 20_000), (3_000, 20_000), (8_000, 15_000)]);
}

#[tokio::test]
async fn a_truncated_part_resumes_where_it_ended() {
    let bytes = content();
    let served = bytes.clone();
    let cut = AtomicUsize::new(0);
    let server = Scripted::start(move |request| match request.range() {
        Some((first, last)) if first > 50_000 && cut.fetch_add(1, Ordering::SeqCst) < 3 => {
            let range = format!("bytes {first}-{last}/{}", served.len());
            let length = (last + 1 - first).to_string();
            let head = Response::head(206, &[("Content-Range", &range), ("Content-Length", &length)]);
            head.and(&served[first..first + 1000]).then_hang_up()
        }
        _ => serve(request, &served),
    });
    let bench = cutting(&server, 2);
    assert_eq!(read(&bench, &blob(&bytes), 0..200_000).await.unwrap(), bytes);
    assert_eq!(bench.source.stats().resumptions, 3);
    assert_eq!(bench.source.stats().bytes_received, 200_000);
}

#[tokio::test]
async fn a_server_that_ignores_ranges_sends_a_large_blob_once() {
    let bytes = content();
    let served = bytes.clone();
    let server = Scripted::start(move |_| Response::new(200, &[], &served));
    let bench = cutting(&server, 4);
    for _ in 0..2 {
        assert_eq!(read(&bench, &blob(&bytes), 0..200_000).await.unwrap(), bytes);
    }
    assert_eq!(server.requests().len(), 2);
    assert_eq!(bench.source.stats().bytes_received, 400_000);
}

#[tokio::test]
async fn a_part_that_cannot_be_had_ends_the_download() {
    let bytes = content();
    let served = bytes.clone();
    let server = Scripted::start(move |request| match request.range() {
        Some((first, _)) if first > 50_000 => Response::new(404, &[], ""),
        _ => serve(request, &served),
    });
    let bench = cutting(&server, 4);
    assert!(matches!(read(&bench, &blob(&bytes), 0..200_000).await, Err(SourceError::NotFound { .. })));
}
