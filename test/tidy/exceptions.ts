/**
 * What of the tree's shape does not hold yet, or does not have to, each with its reason. An entry that is no longer needed
 * fails the test: delete it.
 */
type Reasons = Readonly<Record<string, string>>

/** Imports that close a circle, as `from → to`: one of each circle, the one to be removed. */
export const CIRCLES: Reasons = {}

/** Imports from a floor that is not below, as `from → to`. */
export const FLOORS: Reasons = {}

/** Functions of more lines than one may have, as `file: name`. */
export const LONG_FUNCTIONS: Reasons = {}

/** Files of more lines than one may have. */
export const LONG_FILES: Reasons = {}

/** Files that own a layout in bytes, which is no batch or record of the protocol. */
export const LAYOUTS: Reasons = {
  'packages/server/src/log/entry.ts': 'The header of an entry.',
  'packages/server/src/log/segment.ts': 'The header of a segment.',
  'packages/server/src/queue/batches.ts': 'The columns of a packed table, in the byte order of the machine.',
  'packages/server/src/queue/facts.ts': 'Facts.',
  'packages/server/src/queue/hash.ts': 'Words of four bytes, for hashing.',
  'packages/server/src/queue/ids.ts': 'Pages of ids.',
  'packages/server/src/queue/chunk-page.ts': 'Pages of chunks.',
  'packages/server/src/state/directory.ts': 'The directory of a checkpoint.',
  'packages/server/src/state/producers.ts': 'Pages of producers.',
}

/** Files that read or write bytes of the protocol at a number. */
export const RAW_OFFSETS: Reasons = {
  'packages/client/src/testing/peer.ts': 'Reads the flags of CREDIT as the peer of a test.',
}
