//! Blobs and ranges that are truncated, late, or wrong.

use futures_util::FutureExt as _;

use super::*;

#[tokio::test]
async fn a_truncated_body_resumes_at_the_last_good_byte() {
    let bytes = content();
    let served = bytes.clone();
    let server = Scripted::start(move |request| {
        let (first, last) = request.range().unwrap_or((0, served.len() - 1));
        // At most 70,000 bytes at a time, whatever was promised.
        let cut = (last + 1).min(first + 70_000);
        let length = (last + 1 - first).to_string();
        let range = format!("bytes {first}-{last}/{}", served.len());
        let headers = [("Content-Length", &*length), ("Content-Range", &*range)];
        let status = if request.range().is_some() { 206 } else { 200 };
        Response::head(status, &headers).and(&served[first..cut]).then_hang_up()
    });
    let bench = bench(&server, None);
    assert_eq!(read(&bench, &blob(&bytes), 0..200_000).await.unwrap(), bytes);
    let ranges: Vec<_> = server.requests().iter().map(Request::range).collect();
    assert_eq!(ranges, [None, Some((70_000, 199_999)), Some((140_000, 199_999))]);
    assert_eq!(bench.source.stats().resumptions, 2);
    assert_eq!(bench.source.stats().bytes_received, 200_000);
    assert_eq!(read(&bench, &blob(&bytes), 5..9).await.unwrap(), bytes[5..9]);
}

#[tokio::test]
async fn a_server_that_always_hangs_up_is_given_up() {
    let bytes = content();
    let served = bytes.clone();
    let server = Scripted::start(move |request| {
        let (first, last) = request.range().unwrap_or((0, served.len() - 1));
        let range = format!("bytes {first}-{last}/{}", served.len());
        let status = if request.range().is_some() { 206 } else { 200 };
        Response::head(status, &[("Content-Range", &range)]).and(&served[first..first + 10]).then_hang_up()
    });
    let bench = bench(&server, None);
    let Err(SourceError::Unreachable { why, .. }) = read(&bench, &blob(&bytes), 0..200_000).await else { panic!() };
    assert!(why.contains("tried 6 times"), "{why}");
    assert_eq!(server.requests().len(), 6);
}

#[tokio::test]
async fn a_slow_reader_loses_no_patience() {
    let bytes = content();
    let served = bytes.clone();
    let server = Scripted::start(move |request| match request.range() {
        None => Response::head(200, &[("Content-Length", "200000")]).and(&served[..1000]).then_hang_up(),
        Some(_) => serve(request, &served),
    });
    let bench = bench(&server, None);
    let mut stream = bench.source.stream(&blob(&bytes), BlobOffset(0)..BlobOffset(200_000)).await.unwrap();
    let mut all = stream.next().await.unwrap().unwrap().into_unverified().to_vec();
    bench.clock.advance(Duration::from_secs(24 * 3600));
    while let Some(piece) = stream.next().await {
        all.extend_from_slice(&piece.unwrap().into_unverified());
    }
    assert_eq!(all, bytes);
}

#[tokio::test]
async fn a_silent_server_is_asked_again() {
    let bytes = content();
    let served = bytes.clone();
    let server = Scripted::start(move |request| match request.range() {
        None => Response::head(200, &[("Content-Length", "200000")]).and(&served[..1000]).then_hang(),
        Some(_) => serve(request, &served),
    });
    let bench = bench_with(&server, None, |options| options.deadlines.stall = Duration::from_millis(250));
    assert_eq!(read(&bench, &blob(&bytes), 0..200_000).await.unwrap(), bytes);
}

/// A timer may be slightly late, and bytes that arrived with the head must not hide that.
#[tokio::test]
async fn a_server_silent_after_a_burst_is_asked_again() {
    let bytes = content();
    let served = bytes.clone();
    let server = Scripted::start(move |request| match request.range() {
        None => Response::head(200, &[("Content-Length", "200000")]).and(&served[..100_000]).then_hang(),
        Some(_) => serve(request, &served),
    });
    let bench = bench_with(&server, None, |options| options.deadlines.stall = Duration::from_millis(5));
    for _ in 0..50 {
        assert_eq!(read(&bench, &blob(&bytes), 0..200_000).await.unwrap(), bytes);
    }
}

/// Silent from the start or after the head: asked once, and given up at the time limit.
#[tokio::test]
async fn a_server_that_never_answers_is_asked_once_and_reported() {
    let bytes = content();
    for head_comes in [false, true] {
        let said = move || if head_comes { Response::head(200, &[]) } else { Response::nothing() };
        let server = Scripted::start(move |_| said().then_hang());
        let bench = bench_with(&server, None, |options| {
            options.deadlines.header = Duration::from_millis(1);
            options.deadlines.connect = Duration::from_millis(1);
            options.deadlines.patience = Duration::from_millis(40);
        });
        for error in [bench.source.root().await.err(), read(&bench, &blob(&bytes), 5..10).await.err()] {
            let Some(SourceError::Unreachable { why, hint, .. }) = error else { panic!("{error:?}") };
            assert_eq!(hint, Outage::Silent.hint());
            assert!(why.contains(&format!("{} gave no answer within 0.04 s", server.address)), "{why}");
        }
        assert_eq!(server.requests().len(), 2);
    }
}

/// A server that is working on a response, as a proxy that fetches a whole layer first.
#[tokio::test]
async fn an_answer_that_is_late_is_waited_for() {
    let bytes = content();
    for head_comes_first in [false, true] {
        let served = bytes.clone();
        let (open, opened) = std::sync::mpsc::channel();
        let opened = Arc::new(Mutex::new(opened));
        let server = Scripted::start(move |request| {
            let opened = opened.clone();
            serve(request, &served).held(head_comes_first, move || opened.lock().unwrap().recv().unwrap())
        });
        let bench = bench_with(&server, None, |options| {
            options.deadlines.header = Duration::from_millis(1);
            options.deadlines.connect = Duration::from_millis(1);
        });
        for policy in [None, Some(OnOutage::Block)] {
            let before = server.requests().len();
            let outages = bench.source.outages().unwrap();
            policy.into_iter().for_each(|policy| outages.retry_without_limit(policy));
            let wanted = blob(&bytes);
            let mut reading = std::pin::pin!(read(&bench, &wanted, 5..10));
            // The late response shows up in the status.
            let late = |wait: &WaitStatus| wait.last_error.contains("gave no answer within 0.002 s yet");
            while !outages.status().iter().any(late) {
                assert!((&mut reading).now_or_never().is_none());
                tokio::task::yield_now().await;
            }
            open.send(()).unwrap();
            assert_eq!(reading.await.unwrap(), bytes[5..10]);
            assert_eq!(server.requests().len(), before + 1, "it is asked once");
            assert!(outages.status().is_empty(), "{:?}", outages.status());
        }
    }
}

#[tokio::test]
async fn a_server_that_ignores_ranges_is_read_from_the_start() {
    let bytes = content();
    let served = bytes.clone();
    let server = Scripted::start(move |_| Response::new(200, &[], &served));
    let bench = bench(&server, None);
    assert!(bench.source.serves_ranges(&blob(&bytes).digest));
    assert_eq!(read(&bench, &blob(&bytes), 100_000..100_010).await.unwrap(), bytes[100_000..100_010]);
    assert!(!bench.source.serves_ranges(&blob(&bytes).digest));
}

#[tokio::test]
async fn wrong_ranges_are_refused_and_the_whole_blob_is_tried() {
    let bytes = content();
    for lie in
        ["bytes 0-9/200000", "bytes 11-20/200000", "bytes 10-99/200000", "", "bytes 10-19/10", "bytes 10-19/199999"]
    {
        let served = bytes.clone();
        let server = Scripted::start(move |request| match request.range() {
            Some(_) => Response::new(206, &[("Content-Range", lie)], &served[..10]),
            None => Response::new(200, &[], &served),
        });
        let bench = bench(&server, None);
        assert_eq!(read(&bench, &blob(&bytes), 10..20).await.unwrap(), bytes[10..20], "{lie}");
        assert_eq!(server.requests().len(), 2);
    }
}

#[tokio::test]
async fn a_server_that_lies_about_everything_is_an_error() {
    let bytes = content();
    let server = Scripted::start(|_| Response::new(206, &[("Content-Range", "bytes 0-9/200000")], [0; 10]));
    let result = read(&bench(&server, None), &blob(&bytes), 10..20).await;
    assert!(matches!(result, Err(SourceError::Protocol { .. })), "{result:?}");
}

#[tokio::test]
async fn a_blob_of_the_wrong_size_is_refused_before_its_body() {
    let bytes = content();
    for length in ["199999", "200001", "0"] {
        let server = Scripted::start(move |_| Response::head(200, &[("Content-Length", length)]).then_hang());
        let result = read(&bench(&server, None), &blob(&bytes), 0..200_000).await;
        let Err(SourceError::Protocol { why, .. }) = result else { panic!("{result:?}") };
        assert!(why.contains("200000") && why.contains(length), "{why}");
    }
}

#[tokio::test]
async fn a_body_without_length_may_not_be_longer_than_the_blob() {
    let bytes = content();
    let server = Scripted::start(|_| Response::head(200, &[]).then_repeat(&[7; 10_000]));
    let result = read(&bench(&server, None), &blob(&bytes[..5_000]), 0..5_000).await;
    assert!(matches!(result, Err(SourceError::Protocol { .. })), "{result:?}");
}

/// Labels from httpd's magic file, or from an upload to S3: the digest decides what a blob is.
#[tokio::test]
async fn labels_on_blobs_are_ignored() {
    let bytes = content();
    for label in ["gzip", "x-gzip", "aws-chunked", "identity, gzip", "br"] {
        let served = bytes.clone();
        let server = Scripted::start(move |request| serve(request, &served).labelled("Content-Encoding", label));
        let bench = bench(&server, None);
        for range in [0..200_000, 5..10] {
            let wanted = &bytes[range.start as usize..range.end as usize];
            assert_eq!(read(&bench, &blob(&bytes), range).await.unwrap(), wanted, "{label}");
        }
    }
}

#[tokio::test]
async fn a_blob_that_was_encoded_on_the_way_is_refused_by_its_size() {
    let bytes = content();
    let server = Scripted::start(move |_| Response::new(200, &[("Content-Encoding", "gzip")], [1; 9]));
    let result = read(&bench(&server, None), &blob(&bytes), 0..200_000).await;
    let Err(SourceError::Protocol { why, .. }) = result else { panic!("{result:?}") };
    assert!(why.contains("should have 200000 bytes") && why.contains("labelled as encoded: `gzip`"), "{why}");
}

#[tokio::test]
async fn documents_that_were_encoded_on_the_way_are_decoded() {
    use std::io::Write as _;

    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(MANIFEST.as_bytes()).unwrap();
    let encoded = encoder.finish().unwrap();
    let digest = Digest::of(Algorithm::Sha256, MANIFEST.as_bytes());
    let named = digest.to_string();
    for (label, says_digest, sends, fits) in [
        (Some("gzip"), false, encoded.clone(), true),
        (Some("x-gzip"), true, encoded.clone(), true),
        (Some("gzip"), true, MANIFEST.into(), true),
        (Some("br"), false, MANIFEST.into(), true),
        (None, true, encoded.clone(), false),
        (Some("br"), true, encoded.clone(), false),
        (Some("gzip"), true, encoded[..20].to_vec(), false),
    ] {
        let named = named.clone();
        let (what, sends) = (format!("{label:?} {says_digest} {fits}"), Bytes::from(sends));
        let server = Scripted::start(move |_| {
            let said = Response::new(200, &[("Content-Type", OCI)], &sends);
            let said = if says_digest { said.labelled("Docker-Content-Digest", &named) } else { said };
            match label {
                Some(label) => said.labelled("Content-Encoding", label),
                None => said,
            }
        });
        let bench = bench(&server, None);
        let wanted = Descriptor::new(MediaType::OciManifest, digest.clone(), MANIFEST.len() as u64);
        let found = bench.source.root().await.map(|(descriptor, _)| descriptor);
        assert_eq!(found.as_ref().ok(), fits.then_some(&wanted), "{what}: {found:?}");
        for document in [bench.source.manifest(&wanted).await, bench.source.config(&wanted).await] {
            let document = document.map(Untrusted::into_unverified).ok().filter(|bytes| bytes == MANIFEST);
            assert_eq!(document.is_some(), fits, "{what}");
        }
    }
}

/// Storage that has the blob, and refuses parts of it in its own way.
#[tokio::test]
async fn where_ranges_are_refused_the_whole_blob_is_fetched_once() {
    let bytes = content();
    for (status, tries) in [(400, 1), (403, 1), (405, 1), (416, 1), (418, 1), (501, 1), (500, 2), (503, 2)] {
        let served = bytes.clone();
        let server = Scripted::start(move |request| match request.range() {
            Some(_) => Response::new(status, &[], "<Error/>"),
            None => Response::new(200, &[], &served),
        });
        let bench = bench(&server, None);
        for range in [5..10, 100..110, 150_000..200_000] {
            let wanted = &bytes[range.start as usize..range.end as usize];
            assert_eq!(read(&bench, &blob(&bytes), range).await.unwrap(), wanted, "{status}");
        }
        let requests = server.requests();
        let ranged = requests.iter().filter(|request| request.range().is_some()).count();
        assert_eq!((ranged, requests.len() - ranged), (tries, 3), "{status}");
    }
}

#[tokio::test]
async fn a_refusal_that_is_not_about_ranges_is_believed() {
    let bytes = content();
    for status in [401, 404, 429] {
        let server = Scripted::start(move |_| Response::new(status, &[], "no"));
        assert!(read(&bench(&server, None), &blob(&bytes), 5..10).await.is_err());
        assert!(server.requests().iter().all(|request| request.range().is_some()), "{status}");
    }
    // A refusal of the whole blob as well.
    let server = Scripted::start(move |_| Response::new(400, &[], "never"));
    let Err(SourceError::Protocol { why, .. }) = read(&bench(&server, None), &blob(&bytes), 5..10).await else {
        panic!()
    };
    assert!(why.contains("400 Bad Request (never)"), "{why}");
    // After ranges were served before.
    let (served, before) = (bytes.clone(), AtomicUsize::new(0));
    let server = Scripted::start(move |request| match before.fetch_add(1, Ordering::SeqCst) {
        0 => serve(request, &served),
        _ => Response::new(400, &[], "no more"),
    });
    let bench = bench(&server, None);
    assert_eq!(read(&bench, &blob(&bytes), 5..10).await.unwrap(), bytes[5..10]);
    assert!(read(&bench, &blob(&bytes), 5..10).await.is_err());
    assert!(server.requests().iter().all(|request| request.range().is_some()));
}

/// A server that fails every request, and then recovers.
#[tokio::test]
async fn trouble_that_passes_leaves_ranges_as_they_were() {
    let bytes = content();
    let (served, before) = (bytes.clone(), AtomicUsize::new(0));
    let server = Scripted::start(move |request| match before.fetch_add(1, Ordering::SeqCst) {
        0..4 => Response::new(503, &[], "tired"),
        _ => serve(request, &served),
    });
    let bench = bench(&server, None);
    for range in [5..10, 100..110] {
        let wanted = &bytes[range.start as usize..range.end as usize];
        assert_eq!(read(&bench, &blob(&bytes), range).await.unwrap(), wanted);
    }
    let ranged: Vec<_> = server.requests().iter().map(|request| request.range().is_some()).collect();
    assert_eq!(ranged, [true, true, false, true, true, true]);
}

#[tokio::test]
async fn an_empty_range_asks_nothing_an_impossible_one_is_an_error() {
    let server = Scripted::start(|_| Response::new(500, &[], ""));
    let bench = bench(&server, None);
    let blob = blob(&content());
    assert!(read(&bench, &blob, 5..5).await.unwrap().is_empty());
    assert!(read(&bench, &blob, 5..200_001).await.is_err());
    #[allow(clippy::reversed_empty_ranges)]
    let backwards = 6..5;
    assert!(read(&bench, &blob, backwards).await.is_err());
    assert_eq!(server.requests().len(), 0);
}
