"""What server and clients say to each other, as bytes: `proto/fedopt/v1/payload.proto`."""
