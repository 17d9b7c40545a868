/**
 * The pages of the state: the durable state of queues and producers is written to the log in pages by a checkpoint. The
 * owner of a page reports when the page comes into existence and when it is gone. The page tree (state/page-tree.ts) is
 * the implementation.
 */

/** Kinds of pages. Recovery restores the pages of a lower kind before those of a higher one. */
export const PAGE = { definition: 1, counters: 2, chunk: 3, ids: 4, producer: 5 } as const
export type PageKind = (typeof PAGE)[keyof typeof PAGE]

export interface Pages {
  /** A page came into existence. The next checkpoint will write it. */
  created(): void
  /** The page is gone. It has a copy in the log, or `created` was called for it. `number` tells pages of a kind apart. */
  removed(kind: PageKind, id: number, number: number): void
}

/** For an owner whose pages are not written. */
export const NO_PAGES: Pages = { created() {}, removed() {} }
