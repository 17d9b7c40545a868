/**
 * The decision tables of the log scan: one table for the state of a log's directory, and one for the state of its tail.
 * This file has only data and a look-up: `directory-scan.ts` and `tail-scan.ts` collect the facts and act on the
 * matching row.
 *
 * Invariant: every combination of facts fits exactly one row, and docs/STORAGE.md has the same rows in the same order.
 */

export interface DirectoryFacts {
  readonly meta: 'missing' | 'damaged' | 'valid'
  /**
   * `blank`: segment numbers start at 1, and all bytes are zero (checked only if `log.meta` is not valid). `unstarted`:
   * segment numbers start at 1, and no segment is in use. `headless`: segment numbers start higher, and no segment is
   * in use. `used`: at least one segment is in use.
   */
  readonly files: 'none' | 'blank' | 'unstarted' | 'headless' | 'used'
  readonly numbers: 'consecutive' | 'gap'
  /** Sizes of the newest segment in use and of all later ones. `right` if the expected size is unknown. */
  readonly sizes: 'right' | 'wrong'
  /**
   * `foreign`: a file belongs to another log. `displaced`: an unused file has the header of a segment that was not
   * freed.
   */
  readonly headers: 'agree' | 'foreign' | 'displaced'
}

export interface TailFacts {
  readonly entries: 'none' | 'some'
  /** Content at the place of the next entry. `nothing`: zeros or old bytes. `unfinished`: a remnant of that entry. */
  readonly behind: 'nothing' | 'unfinished'
  /** Content of the start of the next, unused segment, with the same two values. */
  readonly next: 'nothing' | 'unfinished'
  /** Whether a whole entry with an LSN above that of the next entry follows, in any segment. */
  readonly later: 'none' | 'found'
}

type Row<Facts, Name> = { readonly row: Name } & { readonly [Key in keyof Facts]?: readonly Facts[Key][] }

export type DirectoryRow =
  | 'gap'
  | 'wrong-size'
  | 'foreign'
  | 'displaced'
  | 'create'
  | 'create-again'
  | 'segments-lost'
  | 'salt-lost'
  | 'head-lost'
  | 'rebuild-meta'
  | 'ordinary'

const ORDERLY = { numbers: ['consecutive'], sizes: ['right'], headers: ['agree'] } as const

/** A field that a row omits matches any value. */
export const DIRECTORY_ROWS: readonly Row<DirectoryFacts, DirectoryRow>[] = [
  { row: 'gap', numbers: ['gap'] },
  { row: 'wrong-size', numbers: ['consecutive'], sizes: ['wrong'] },
  { row: 'foreign', numbers: ['consecutive'], sizes: ['right'], headers: ['foreign'] },
  { row: 'displaced', numbers: ['consecutive'], sizes: ['right'], headers: ['displaced'] },
  { row: 'create', ...ORDERLY, meta: ['missing'], files: ['none'] },
  { row: 'create-again', ...ORDERLY, meta: ['missing', 'damaged'], files: ['blank'] },
  { row: 'segments-lost', ...ORDERLY, meta: ['damaged', 'valid'], files: ['none'] },
  { row: 'salt-lost', ...ORDERLY, meta: ['missing', 'damaged'], files: ['unstarted', 'headless'] },
  { row: 'head-lost', ...ORDERLY, meta: ['valid'], files: ['headless'] },
  { row: 'rebuild-meta', ...ORDERLY, meta: ['missing', 'damaged'], files: ['used'] },
  { row: 'ordinary', ...ORDERLY, meta: ['valid'], files: ['blank', 'unstarted', 'used'] },
]

export type TailRow = 'later-entry' | 'clean' | 'bare' | 'torn' | 'torn-in-next'

export const TAIL_ROWS: readonly Row<TailFacts, TailRow>[] = [
  { row: 'later-entry', later: ['found'] },
  { row: 'clean', entries: ['some'], behind: ['nothing'], next: ['nothing'], later: ['none'] },
  { row: 'bare', entries: ['none'], behind: ['nothing'], next: ['nothing'], later: ['none'] },
  { row: 'torn', behind: ['unfinished'], later: ['none'] },
  { row: 'torn-in-next', behind: ['nothing'], next: ['unfinished'], later: ['none'] },
]

/** The rows that a log scan has picked. A row is undefined until the scan has picked it. */
export interface ScanRows {
  directory?: DirectoryRow
  tail?: TailRow
}

/** All rows that match. In a correct table there is exactly one. */
export function matchingRows<Facts extends object, Name>(
  rows: readonly Row<Facts, Name>[],
  facts: Facts,
): Name[] {
  const fits = (row: Row<Facts, Name>): boolean =>
    (Object.keys(facts) as (keyof Facts)[]).every((key) => {
      const allowed = row[key] as readonly unknown[] | undefined
      return allowed === undefined || allowed.includes(facts[key])
    })
  return rows.filter(fits).map(({ row }) => row)
}

/** Returns the only row that matches. */
export function decidingRow<Facts extends object, Name>(
  rows: readonly Row<Facts, Name>[],
  facts: Facts,
): Name {
  const names = matchingRows(rows, facts)
  const [name] = names
  if (name === undefined || names.length > 1) {
    throw new Error(`${names.length} rows match ${JSON.stringify(facts)}.`)
  }
  return name
}
