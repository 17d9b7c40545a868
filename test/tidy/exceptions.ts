/**
 * Exceptions to the rules on the shape of the tree, each with its reason. An entry that is no longer needed fails the
 * test: delete it.
 */
type Reasons = Readonly<Record<string, string>>

/** Imports to remove, one for each circle, as `from → to`. */
export const CIRCLES: Reasons = {}

/** Imports from a layer that is not lower, as `from → to`. */
export const FLOORS: Reasons = {}

/** Functions that exceed the limit of lines, as `file: name`. */
export const LONG_FUNCTIONS: Reasons = {}

/** Files that exceed the limit of lines. */
export const LONG_FILES: Reasons = {}

/** Files that own a byte layout other than the batches and records of the protocol. */
export const LAYOUTS: Reasons = {
  'packages/server/src/log/entry.ts': 'The header of an entry.',
  'packages/server/src/log/segment.ts': 'The header of a segment.',
  'packages/server/src/queue/batches.ts': 'The columns of a packed table, in the byte order of the machine.',
  'packages/server/src/queue/facts.ts': 'Facts.',
  'packages/server/src/queue/hash.ts': 'Words of four bytes, for hashing.',
  'packages/server/src/queue/ids.ts': 'Pages of ids.',
  'packages/server/src/queue/chunk-page.ts': 'Pages of chunks.',
  'packages/server/src/queue/queue-page.ts': 'Pages of the counters of queues.',
  'packages/server/src/state/definitions.ts': 'Pages of definitions.',
  'packages/server/src/state/directory.ts': 'The directory of a checkpoint.',
  'packages/server/src/state/page-node.ts': 'The nodes of the tree of pages.',
  'packages/server/src/state/producers.ts': 'Pages of producers.',
}

/** Files that access bytes of the protocol at a numeric offset. */
export const RAW_OFFSETS: Reasons = {
  'packages/client/src/testing/peer.ts': 'Reads the flags of CREDIT as the peer of a test.',
}
