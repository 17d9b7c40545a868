import { existsSync, readFileSync, readdirSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect, it } from 'vitest'

const root = fileURLToPath(new URL('../..', import.meta.url))
const documents = [
  ...['README.md', 'ARCHITECTURE.md', 'CONTRIBUTING.md', 'CHANGELOG.md'],
  ...readdirSync(join(root, 'docs'))
    .filter((name) => name.endsWith('.md'))
    .map((name) => join('docs', name)),
  ...readdirSync(join(root, 'docs/adr')).map((name) => join('docs/adr', name)),
]

it('lists every decision in the index, and has every decision that the index lists', () => {
  const index = readFileSync(join(root, 'docs/adr/README.md'), 'utf8')
  const listed = [...index.matchAll(/\]\((\d{4}-[a-z0-9-]+\.md)\)/g)].map((match) => match[1]!)
  const files = readdirSync(join(root, 'docs/adr')).filter((name) => /^\d{4}-/.test(name))
  expect(listed.toSorted(byText)).toEqual(files.toSorted(byText))
  expect(files.length).toBeGreaterThanOrEqual(9)
  for (const name of files) {
    const text = readFileSync(join(root, 'docs/adr', name), 'utf8')
    expect(text, name).toMatch(
      new RegExp(
        `^# ${name.slice(0, 4)} · .+\n\nStatus: (accepted|replaced by \\d{4}) · \\d{4}-\\d\\d-\\d\\d\n`,
      ),
    )
    expect(text, name).toContain('## Decision')
  }
})

it('links only to files and headings that exist', () => {
  let checked = 0
  for (const name of documents) {
    const text = readFileSync(join(root, name), 'utf8')
    for (const match of text.matchAll(/\]\(([^)]+)\)/g)) {
      const target = match[1]!
      if (/^[a-z]+:/.test(target)) continue
      const [path, heading] = target.split('#') as [string, string | undefined]
      const file = path === '' ? join(root, name) : join(root, dirname(name), path)
      expect(existsSync(file), `${name} links to ${target}`).toBe(true)
      if (heading !== undefined) expect(headings(file), `${name} links to ${target}`).toContain(heading)
      checked++
    }
  }
  expect(checked).toBeGreaterThan(40)
})

function headings(file: string): string[] {
  return [...readFileSync(file, 'utf8').matchAll(/^#+ (.+)$/gm)].map((match) =>
    match[1]!
      .toLowerCase()
      .replace(/[^\p{L}\p{N} _-]/gu, '')
      .replaceAll(' ', '-'),
  )
}

function byText(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0
}
