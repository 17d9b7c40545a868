/**
 * The pages of the guide as data: their code, which forms one program per page, their tables, and the names that they
 * mention. A program is the text that a reader gets by pasting the blocks of a page into one file. Each line of code
 * keeps its line number on the page, so that errors name lines of the page. A page may hide only code that closes what
 * the page opened; this code is called after the program has printed what the page says.
 */
import { readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const guideDirectory = fileURLToPath(new URL('../../docs/guide', import.meta.url))

export interface CodeBlock {
  /** Line number of the block's first line of code, from 1. */
  readonly line: number
  readonly lines: number
  /** The reason why the block is not run; undefined if it is run. */
  readonly noRun: string | undefined
  /** Whether the block is hidden from readers. */
  readonly isHidden: boolean
}

/** A line that prints, and its output each time that it runs. */
export interface Print {
  readonly line: number
  readonly texts: readonly string[]
}

export interface Table {
  readonly line: number
  readonly header: readonly string[]
  readonly rows: readonly (readonly string[])[]
}

export interface Page {
  readonly name: string
  readonly file: string
  readonly text: string
  readonly blocks: readonly CodeBlock[]
  /** The blocks as one program. */
  readonly program: string
  readonly prints: readonly Print[]
  readonly tables: readonly Table[]
}

export function readPages(): Page[] {
  return readdirSync(guideDirectory)
    .filter((file) => file.endsWith('.md'))
    .toSorted()
    .map((file) => readPage(file))
}

const FENCE = /^```ts(?: no-run: (.+))?$/
const HIDDEN = '<!-- close'
const CLOSING =
  /^await (?:[A-Za-z]+\.close\(\)|Promise\.all\(\[[A-Za-z]+\.close\(\)(?:, [A-Za-z]+\.close\(\))+\]\))$/
const LOG = 'console.log('
const PRINTS = ' // prints '
/** Separates the first output of a line from the next one. */
const THEN = ', then '

/** The code of the project's README as one program, each line at its line number in the README. */
export function readReadme(): string {
  const lines = readFileSync(join(guideDirectory, '../../README.md'), 'utf8').split('\n')
  let isCode = false
  return lines
    .map((line) => {
      if (line === '```ts') isCode = true
      else if (line === '```') isCode = false
      else if (isCode) return line
      return ''
    })
    .join('\n')
}

function readPage(file: string): Page {
  const name = file.slice(0, -'.md'.length)
  const text = readFileSync(join(guideDirectory, file), 'utf8')
  const lines = text.split('\n')
  const program = lines.map(() => '')
  const blocks: CodeBlock[] = []
  const prints: Print[] = []
  for (let at = 0; at < lines.length; at++) {
    const fence = FENCE.exec(lines[at]!)
    const isHidden = lines[at] === HIDDEN
    if (fence === null && !isHidden) {
      if (lines[at]!.startsWith('```ts'))
        throw new Error(`${file}:${at + 1}: a code fence that is not recognised`)
      continue
    }
    const end = lines.indexOf(isHidden ? '-->' : '```', at + 1)
    if (end === -1) throw new Error(`${file}:${at + 1}: a block without an end`)
    const noRun = fence?.[1]
    if (isHidden) {
      for (let line = at + 1; line < end; line++)
        if (!CLOSING.test(lines[line]!))
          throw new Error(`${file}:${line + 1}: hidden code that does more than close`)
      program[at] = 'export async function close() {'
      program[end] = '}'
    }
    blocks.push({ line: at + 2, lines: end - at - 1, noRun, isHidden })
    // Blocks that are not run must compile too.
    if (noRun !== undefined) {
      program[at] = `export async function notRun${blocks.length}() {`
      program[end] = '}'
    }
    for (let line = at + 1; line < end; line++) {
      const code = lines[line]!
      program[line] = code.replace(LOG, `guideLog(${JSON.stringify(name)}, ${line + 1}, `)
      const print = code.indexOf(PRINTS)
      if (code.includes(LOG) !== print > 0)
        throw new Error(`${file}:${line + 1}: a line that prints must say what it prints`)
      if (print > 0 && noRun === undefined)
        prints.push({ line: line + 1, texts: code.slice(print + PRINTS.length).split(THEN) })
    }
    at = end
  }
  return { name, file, text, blocks, program: program.join('\n'), prints, tables: tablesIn(lines) }
}

function tablesIn(lines: readonly string[]): Table[] {
  const tables: Table[] = []
  for (let at = 0; at < lines.length; at++) {
    if (!lines[at]!.startsWith('|') || !/^\|[-| ]+\|$/.test(lines[at + 1] ?? '')) continue
    const rows: string[][] = []
    let end = at + 2
    for (; lines[end]?.startsWith('|') === true; end++) rows.push(cells(lines[end]!))
    tables.push({ line: at + 1, header: cells(lines[at]!), rows })
    at = end
  }
  return tables
}

function cells(row: string): string[] {
  return row
    .replace(/^\||\|$/g, '')
    .split(/(?<!\\)\|/)
    .map((cell) => cell.trim().replaceAll('\\|', '|'))
}
