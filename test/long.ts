/**
 * `pnpm test:long`: runs the long modes of the tests, part by part. A file in test/dist records the parts that passed,
 * so that an interrupted run continues where it stopped.
 *
 * pnpm test:long [--parts 3]     runs the next 3 parts; without --parts, all remaining ones
 * pnpm test:long --part crash    runs the parts whose names start with `crash`, even if they passed
 * pnpm test:long --list          lists the parts with the time at which they passed, or the command of each
 * pnpm test:long --again         clears the record
 */
import { spawnSync } from 'node:child_process'
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { parseArgs } from 'node:util'
import { argumentsOf, commandOf, PARTS, ROOT, type Part } from './long-parts.js'

const NOTES = join(ROOT, 'test/dist/long-parts.json')
/** The reporter of the tests writes the number of crash points into this file. */
const CRASH_POINTS = join(ROOT, 'test/dist/crash-points')

/** A part that passed. */
interface Note {
  /** The time and the commit. */
  readonly passed: string
  readonly crashPoints: number
}

/** The parts that passed, by name. */
type Notes = Record<string, Note>

function readNotes(): Notes {
  try {
    return JSON.parse(readFileSync(NOTES, 'utf8')) as Notes
  } catch {
    return {}
  }
}

function commit(): string {
  return (
    spawnSync('git', ['rev-parse', '--short', 'HEAD'], { cwd: ROOT, encoding: 'utf8' }).stdout?.trim() ?? ''
  )
}

function run(part: Part): boolean {
  console.log(`\n== ${part.name}: ${commandOf(part)}`)
  const env = { ...process.env, SLUICE_LONG: '1', SLUICE_CRASH_POINTS: CRASH_POINTS, ...part.env }
  const { status } = spawnSync('npx', argumentsOf(part), { cwd: ROOT, env, stdio: 'inherit' })
  if (status !== 0) return false
  const notes = readNotes()
  const crashPoints = Number(readFileSync(CRASH_POINTS, 'utf8'))
  notes[part.name] = { passed: `${new Date().toISOString()} ${commit()}`.trim(), crashPoints }
  mkdirSync(dirname(NOTES), { recursive: true })
  writeFileSync(NOTES, `${JSON.stringify(notes, undefined, 2)}\n`)
  return true
}

function left(): Part[] {
  const notes = readNotes()
  return PARTS.filter(({ name }) => notes[name] === undefined)
}

function sayNext(): void {
  const parts = left()
  const [next] = parts
  const crashPoints = Object.values(readNotes()).reduce((sum, note) => sum + note.crashPoints, 0)
  console.log(`\n${crashPoints} crash points in the parts that passed.`)
  console.log(
    next === undefined
      ? `All ${PARTS.length} parts passed. \`pnpm test:long --again\` clears the record.`
      : `${PARTS.length - parts.length} of ${PARTS.length} parts passed. Next: ${next.name}: ${commandOf(next)}`,
  )
}

function main(): void {
  const { values } = parseArgs({
    options: {
      parts: { type: 'string' },
      part: { type: 'string' },
      list: { type: 'boolean' },
      again: { type: 'boolean' },
    },
  })
  if (values.again === true) rmSync(NOTES, { force: true })
  if (values.list === true) {
    const notes = readNotes()
    for (const part of PARTS)
      console.log(`${part.name.padEnd(24)} ${notes[part.name]?.passed ?? commandOf(part)}`)
  } else if (values.again !== true) {
    const { part: start, parts: count } = values
    const chosen = start === undefined ? left() : PARTS.filter(({ name }) => name.startsWith(start))
    if (start !== undefined && chosen.length === 0) {
      console.error(`No part begins with ${start}. --list prints the names.`)
      process.exitCode = 2
      return
    }
    for (const part of chosen.slice(0, count === undefined ? chosen.length : Number(count))) {
      if (run(part)) continue
      console.error(`\n${part.name} failed. Run it again with: ${commandOf(part)}`)
      process.exitCode = 1
      return
    }
  }
  sayNext()
}

main()
