/** Tables and lists as aligned text: no borders, numbers to the right, the same on a terminal and in a pipe. */
import { printable } from './output.js'

export interface Column<Row> {
  readonly title: string
  readonly value: (row: Row) => string | number
}

const GAP = '  '

/** A line of titles, then one for each row. */
export function table<Row>(columns: readonly Column<Row>[], rows: readonly Row[]): string {
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
      return `${cells.join(GAP).trimEnd()}\n`
    })
    .join('')
}

/** One line for each entry: its name, then its value. */
export function list(
  entries: readonly (readonly [name: string, value: string | number])[],
  indent = '',
): string {
  const width = Math.max(...entries.map(([name]) => name.length))
  return entries.map(([name, value]) => `${indent}${name.padEnd(width)}${GAP}${cell(value)}\n`).join('')
}

function cell(value: string | number): string {
  return typeof value === 'number' ? String(value) : printable(value)
}
