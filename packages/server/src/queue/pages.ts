/**
 * The pages of the state: the durable state of queues, producers and definitions is written to the log in pages by a checkpoint. The
 * owner of a page reports when the page is created and when it is gone. The page tree (state/page-tree.ts) is
 * the implementation.
 */

import type { ChunkSummary } from './cold.js'

/**
 * Kinds of pages; 6 is the kind of nodes. Recovery restores the pages of a lower kind before those of a higher one.
 * `defined` is the page of a definition that is not a queue (state/definitions.ts).
 */
export const PAGE = { definition: 1, counters: 2, ids: 3, chunk: 4, producer: 5, defined: 7 } as const
export type PageKind = (typeof PAGE)[keyof typeof PAGE]

export interface Pages {
  /** The summary with which the page of a chunk was written; undefined if it has none. */
  summary(queueId: number, chunkNumber: number): ChunkSummary | undefined
  /** A page was created. The next checkpoint will write it. */
  created(): void
  /** The page is gone. It has a copy in the log, or `created` was called for it. `number` tells pages of a kind apart. */
  removed(kind: PageKind, id: number, number: number): void
}

/** For an owner whose pages are not written. */
export const NO_PAGES: Pages = { summary: () => undefined, created() {}, removed() {} }
