//! Writes the code for the messages of gRPC services from the files in `grpc/proto`, to be checked in.
//!
//!     cargo run --manifest-path grpc/generate/Cargo.toml

use std::path::Path;

fn main() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for (project, files, into) in GENERATED {
        let into = repository.join(into);
        std::fs::create_dir_all(&into).expect("its directory can be made");
        let protos = repository.join("grpc/proto").join(project);
        let files = protox::compile(*files, [&protos]).expect("the files can be parsed");
        let builder = tonic_prost_build::configure().build_transport(false).emit_rerun_if_changed(false).out_dir(into);
        builder.compile_fds(files).expect("code can be generated");
    }
}

/// Directories below `grpc/proto`, the files in them, and where the code for these goes.
const GENERATED: &[(&str, &[&str], &str)] = &[
    ("containerd", &["services/snapshots/v1/snapshots.proto"], "snapshotter/src/generated"),
    ("csi", &["csi.proto"], "csi/src/generated"),
    ("kubelet", &["pluginregistration.proto"], "csi/src/generated"),
];
