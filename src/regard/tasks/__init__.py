"""Problems from raw files to result files: data, loss, metric, decoding, writer; one file or folder per problem."""
