/**
 * Formats tables and lists as aligned text without borders. Numbers are right-aligned. Pipes and terminals get the same
 * format.
 */
import { printable } from './output.js'

export interface Column<Row> {
  readonly title: string
  readonly value: (row: Row) => string | number
}

const GAP = '  '

/** The width of the terminal; Infinity without a terminal, or if it reports 0 columns because its width is unknown. */
export function widthMax(): number {
  return process.stdout.isTTY && process.stdout.columns > 0 ? process.stdout.columns : Infinity
}

/** Returns a line of titles, and then one line for each row. Lines are truncated to `widthMax`. */
export function table<Row>(
  columns: readonly Column<Row>[],
  rows: readonly Row[],
  widthMax = Infinity,
): string {
  const numeric = columns.map(({ value }) => rows.length > 0 && typeof value(rows[0]!) === 'number')
  const lines = [
    columns.map(({ title }) => title),
    ...rows.map((row) => columns.map(({ value }) => cell(value(row)))),
  ]
  const widths = columns.map((_, index) => Math.max(...lines.map((line) => line[index]!.length)))
  return lines
    .map((line) => {
      const cells = line.map((text, index) =>
        numeric[index] ? text.padStart(widths[index]!) : text.padEnd(widths[index]!),
      )
      return `${shortened(cells.join(GAP).trimEnd(), widthMax)}\n`
    })
    .join('')
}

/** Returns one line for each entry, with its name and its value. */
export function list(
  entries: readonly (readonly [name: string, value: string | number])[],
  indent = '',
): string {
  const width = Math.max(...entries.map(([name]) => name.length))
  return entries.map(([name, value]) => `${indent}${name.padEnd(width)}${GAP}${cell(value)}\n`).join('')
}

/** Returns the first `charactersMax` characters. If the text is longer, the last character shown is …. */
export function shortened(text: string, charactersMax: number): string {
  if (text.length <= charactersMax) return text
  const kept = text.slice(0, Math.max(0, charactersMax - 1))
  // A surrogate pair is not split.
  return `${/[\uD800-\uDBFF]$/.test(kept) ? kept.slice(0, -1) : kept}…`
}

function cell(value: string | number): string {
  return typeof value === 'number' ? String(value) : printable(value)
}
